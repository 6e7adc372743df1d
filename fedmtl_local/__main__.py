"""`python -m fedmtl_local`, and the command `fedmtl-local`."""

from fedmtl_core.cli import run
from fedmtl_local.cli import app


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
