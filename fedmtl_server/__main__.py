"""`python -m fedmtl_server`, and the command `fedmtl-server`."""

from fedmtl_core.cli import run
from fedmtl_server.commands.app import app


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
