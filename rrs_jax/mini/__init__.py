"""The small real model "mini" in the layout of Qwen2-Audio.

It is the encoder of Whisper-base, one projector, and Qwen2.5-Coder-0.5B as decoder.

model.py               ensure_mini: the folder with the shipped bridge merged
base.py                ensure_base: the folder with an untrained projector
sources.py             where the weights come from: the hub, the package index, or a folder
gguf_reader.py, ctranslate2_reader.py, hub_reader.py    the files that hold decoder and encoder
lazy_tensor.py         tensors that are made when they are written
tokenizer.py           tokenizer files and chat template
train_bridge.py        trains the bridge: bridge_questions.py and bridge_data.py make its data,
                       bridge_step.py is one step
measure.py, separability.py    how well the mini hears, and what a probe tells apart in it
"""
