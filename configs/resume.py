"""A run that exists, with the config that it recorded.

    python launch.py --config=configs/resume.py:RUN --stages=evaluate,report --config.evaluate.samples=1

`RUN` is a run folder, which may have been moved. Stages that train keep the recorded values, as always; those
of evaluation, export and report may be set anew.
"""

from ml_collections import ConfigDict

from rrs_jax.run.recorded_config import recorded_config


def get_config(folder: str = "") -> ConfigDict:
    """Returns the config of the run in `folder`."""
    return recorded_config(folder)
