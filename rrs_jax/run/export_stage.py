"""The export stage: the adapter and the merged folder with their model cards, and their upload."""

from flax import nnx
from ml_collections import ConfigDict

from rrs_jax.config import flatten
from rrs_jax.config.vocabulary import task_of
from rrs_jax.errors import stop_if_asked
from rrs_jax.files import read_json
from rrs_jax.progress import say
from rrs_jax.report.table import markdown_table
from rrs_jax.run.context import RunContext, base_name
from rrs_jax.run.recorded_epochs import adapter_hash
from rrs_jax.weights.export import export_adapter, export_merged
from rrs_jax.weights.model_card import write_model_card
from rrs_jax.weights.named_models import is_named
from rrs_jax.weights.upload import upload


def export(context: RunContext) -> dict:
    """Writes the adapter for PEFT and, where asked for, the merged folder, each with a model card; uploads
    them where asked for. Returns the addresses of the uploads as facts."""
    config, folder, base = context.config, context.folder, context.model_folder()
    model, name = exported_model(context), _told_base_name(context)
    targets = [folder.adapter]
    layout, scale = config.export.layout, config.export.scale
    export_adapter(model, base, folder.adapter, base_name=name, layout=layout, scale=scale)
    if config.export.merged:
        export_merged(model, base, folder.merged, scale=scale)
        targets.append(folder.merged)
    settings = flatten(config) | {"data.questions": len(context.read_training_rows())}
    names, summaries = repositories(config), _summaries(context, model)
    for place, target in enumerate(targets):
        stop_if_asked()
        write_model_card(
            target,
            base_folder=base,
            base_name=name,
            settings=settings,
            results=markdown_table([folder.path]) if summaries else None,
            summaries=summaries,
            repository=names[place] if names else None,
        )
    uploads = [upload(target, repository) for target, repository in zip(targets, names, strict=False)]
    for address in uploads:
        say(f"export: uploaded, {address}")
    return {"uploads": uploads} if uploads else {}


def exported_model(context: RunContext) -> nnx.Module:
    """The model with the adapters of `export.checkpoint`."""
    which = context.config.export.checkpoint
    return context.restore_adapters(*(() if which == "last" else (which,)))  # the last is kept by evaluation


def repositories(config: ConfigDict) -> list[str]:
    """Names on the hub of what is uploaded: the adapter's, then the merged folder's."""
    name = config.export.push
    if name is None:
        return []
    return [name, f"{name}-merged"] if config.export.merged else [name]


def _told_base_name(context: RunContext) -> str | None:
    """The base's published name; says where it was read, or that there is none."""
    path = context.config.model.path
    name, source = base_name(context.config, context.model_folder())
    if name is None and not is_named(path):
        say(
            f"export: {source} says under which name it is published, so adapter_config.json names no base;"
            " --config.export.base_name=OWNER/NAME does"
        )
    elif name not in (None, path, context.config.export.base_name):
        say(f"export: the base is called {name}, as {source} says")
    return name


def _summaries(context: RunContext, model: nnx.Module) -> dict[str, dict]:
    """The run's rates by the name of their evaluation; none where they are of another checkpoint than
    `model`, or of another strength than what is exported."""
    folder, strategy = context.folder, context.config.strategy
    if context.config.export.scale != 1 or adapter_hash(model) != read_json(
        folder.path / ".done" / "train.json"
    ).get("adapter"):
        return {}
    files = sorted(folder.evaluations.glob("*/summary.json"))
    found = [(file.parent.name, file) for file in files if file.parent.name.split("-")[0] == strategy]
    return {name: read_json(file) for name, file in found if task_of(name) is None}  # theirs are no rates
