"""The small real model "mini": Whisper-base encoder, one projector, Qwen2.5-Coder-0.5B decoder, as a
Qwen2-Audio folder.

sources           where the weights come from: the hub, the package index, or a folder
gguf_reader       the decoder's file, dequantised tensor by tensor
ctranslate2_reader  the encoder's file
hub_reader        both from the hub's safetensors folders
lazy_tensor       tensors that are made when they are written
tokenizer         tokenizer files and chat template
base              ensure_base: the folder with an untrained projector
model             ensure_mini: the folder with the shipped bridge merged
"""
