"""The entry point of `python -m fedmtl_local` and of the command `fedmtl-local`."""

import sys

from fedmtl_core.runtime.starting import end_at_once_on_ctrl_c


def main() -> None:
    end_at_once_on_ctrl_c()
    from fedmtl_core.runtime.cli import run
    from fedmtl_local.cli import app

    if sys.argv[1:2] == ["new"]:  # no group: the command beside it has required options
        from fedmtl_local.new.cli import new_federation_app

        sys.argv[:2] = [f"{sys.argv[0]} new"]
        run(new_federation_app)
    else:
        run(app)


if __name__ == "__main__":
    main()
