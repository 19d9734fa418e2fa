"""The small real models "mini" and "small" in the layout of Qwen2-Audio.

Each is the encoder of Whisper-base, one projector, and Qwen2.5-Coder of 0.5 or 1.5 billion as decoder.

model_table.py         the models: parts, pinned sums, licences, sizes
model.py               ensure_model: the folder with the shipped bridge merged
base.py                ensure_base: the folder with an untrained projector
sources.py             where the weights come from: the hub, the package index, or a folder
gguf_reader.py, ctranslate2_reader.py, hub_reader.py    the files that hold decoder and encoder
lazy_tensor.py         tensors that are made when they are written
tokenizer.py           tokenizer files and chat template
train_bridge.py        trains the bridge: bridge_questions.py and bridge_data.py make its data,
                       bridge_examples.py and bridge_batch.py batches of them,
                       bridge_losses.py the losses, bridge_step.py one step
measure.py, separability.py    how well a model hears, and what a probe tells apart in it
"""
