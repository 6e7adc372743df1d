"""`python -m fedmtl_experiment`, and the command `fedmtl-experiment`."""

from fedmtl_core.cli import run
from fedmtl_experiment.cli import app


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
