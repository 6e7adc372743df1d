"""The entry point of `python -m fedmtl_local` and of the command `fedmtl-local`."""

from fedmtl_core.runtime.starting import end_at_once_on_ctrl_c


def main() -> None:
    end_at_once_on_ctrl_c()
    from fedmtl_core.runtime.cli import run
    from fedmtl_local.cli import app

    run(app)


if __name__ == "__main__":
    main()
