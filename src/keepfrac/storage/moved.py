"""Where modules are that earlier versions kept elsewhere.

Finished runs, configurations and commands name modules as they were when everything lay in the root of `src`.
"""

MOVED = {
    "adapting": "training.adapter_tuning",
    "adapting_account": "training.adapter_tuning",
    "archives": "storage.archives",
    "augment": "augmentation",
    "baselines.table": "reporting.stages",
    "build": "storage.build",
    "delivery": "run.delivery",
    "distill": "distillation",
    "distill.recipe.Recipe": "distillation.distiller.Distiller",
    "element_pruner": "training.weight_pruning",
    "execution": "run.execution",
    "finetune": "training.finetune",
    "hub": "storage.hub",
    "identity": "run.identity",
    "lineage": "run.lineage",
    "lowrank": "adapters",
    "lowrank.adapter": "adapters.layer",
    "lowrank.adapter_files": "adapters.files",
    "lowrank.adapter_function": "adapters.function",
    "lowrank.adapter_mask": "adapters.masks",
    "lowrank.adapter_select": "adapters.selection",
    "lowrank.adapter_slice": "adapters.slicing",
    "lowrank.adapter_surgery": "adapters.surgery",
    "lowrank.adapter_units": "adapters.units",
    "lowrank.factorize": "prune.factorize",
    "measure": "measurement.costs",
    "measure.latency": "measurement.latency",
    "measure.parts": "measurement.parts",
    "measure.peak": "measurement.peak",
    "measure.sparsity": "measurement.sparsity",
    "models.fewer_tokens": "models.vocabulary.pruning",
    "models.fused": "tensors.layouts",
    "models.original": "models.dense_reference",
    "models.vocabulary": "models.vocabulary.tokenizers",
    "probe": "run.probe",
    "provenance": "storage.provenance",
    "pruner": "training.structured_pruning",
    "ranks": "training.distributed",
    "redact": "storage.redact",
    "regularize": "training.options",
    "report": "reporting",
    "results": "storage.results",
    "resume": "training.checkpoint",
    "run": "run.run",
    "slurm": "sweep.slurm",
    "sparse.activation": "sparse.layers.activation",
    "sparse.attention": "sparse.layers.attention",
    "sparse.bits": "tensors.bits",
    "sparse.dropout": "sparse.layers.dropout",
    "sparse.keeping": "sparse.selection.keeping",
    "sparse.late": "sparse.act8bit",
    "sparse.late.saving.LateSaving": "sparse.act8bit.saver.Act8bit",
    "sparse.layer_norm": "sparse.layers.layer_norm",
    "sparse.linear": "sparse.layers.linear",
    "sparse.packing": "sparse.selection.packing",
    "sparse.selectors": "sparse.selection.selectors",
    "sparse.site": "sparse.selection.site",
    "surgery": "tensors.surgery",
    "sweep": "sweep.planning",
    "tasks.files": "tasks.data.files",
    "tasks.glue_files": "tasks.data.glue",
    "tasks.hub_data": "tasks.data.hub_data",
    "tasks.masked_scores": "tasks.metrics.masked_lm",
    "tasks.meanings": "tasks.data.corpora",
    "tasks.multi_label": "tasks.metrics.multi_label",
    "tasks.scores": "tasks.metrics.scores",
    "tasks.text_scores": "tasks.metrics.text",
    "tensorboard": "tracking.tensorboard",
    "tracking": "tracking.wandb_run",
}
COMMANDS = ("main", "report", "measure", "sync", "dashboard")


def today(path: str) -> str:
    """Returns the import path of today for one of an earlier version; any other path as it is.

    Args:
        path: a module, or something in one, such as "src.finetune.FineTune".
    """
    root, _, rest = path.partition(".")
    if root != "src" or not rest or rest in COMMANDS:
        return path
    parts = rest.split(".")
    for length in range(len(parts), 0, -1):
        if (new := MOVED.get(".".join(parts[:length]))) is not None:
            return ".".join(["keepfrac", new, *parts[length:]])
    return f"keepfrac.{rest}"
