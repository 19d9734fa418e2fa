"""XLA's flags for programs that compile fast and run slowly."""

from importlib.metadata import version

UNOPTIMISED = "--xla_backend_optimization_level=0"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # The emitters of fusions take twice as long as what they replace; 0.11.2 no longer knows the flag.
    UNOPTIMISED += " --xla_cpu_use_fusion_emitters=false"
