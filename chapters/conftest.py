"""What nbval needs: chapters as they are recorded."""

import os

# Outputs are compared with those of a CPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Controls as recorded ones are, with all their pictures in the output.
os.environ["BRAINLIB_CONTROLS"] = "static"


def pytest_collection_modifyitems(items):
    # nbval takes a cell without an execution count as not run; ours have none.
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None and cell.get("cell_type") == "code":
            cell.execution_count = (
                1  # in memory only; nbval then compares the outputs
            )
