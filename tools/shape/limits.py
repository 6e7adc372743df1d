"""The limits of the project's figures, and the order of its layers."""

from __future__ import annotations

from dataclasses import dataclass

PACKAGES = ("fedmtl_core", "fedmtl_server", "fedmtl_client", "fedmtl_local", "fedmtl_experiment", "benchmarks", "tools")
"""The measured packages: all code except tests and generated code."""

ACCESS = "fedmtl_server/access/"
MIGRATIONS = "fedmtl_server/storage/migrations/"

APART = ("fedmtl_server/", "fedmtl_client/")
"""Two packages that never import each other. They share only the contract and `fedmtl_core`."""


@dataclass(frozen=True)
class Limit:
    """The maximum of a figure."""

    figure: str
    at_most: int
    why: str
    exempt: tuple[str, ...] = ()
    """The prefixes of paths that the limit does not apply to."""


LIMITS = (
    Limit("lines of a class", 300, "A class with one responsibility can be read in one sitting."),
    Limit("methods of a class", 25, "A class with more methods has more than one responsibility."),
    Limit(
        "parameters of a constructor",
        8,
        "A class that needs more parameters does the work of other classes. Written `__init__` methods count, without "
        "`self`. Frozen dataclasses and configuration sections are data and do not count.",
    ),
    Limit("lines of a file", 450, "A file has one responsibility."),
    Limit("lines of the median file", 115, "Most files fit on two screens."),
    Limit(
        "lines of a function",
        60,
        "A function fits on one screen. Migrations are exempt: each is one long list of columns that never changes.",
        (MIGRATIONS,),
    ),
    Limit("import circles", 0, "Files that import each other can only be understood, tested and moved together."),
    Limit("imports upwards", 0, "A lower layer does not import a higher one: LAYERS defines the order."),
    Limit("modules in no layer", 0, "Every module belongs to a layer: add the module to LAYERS."),
    Limit("imports between server and client", 0, "They share only the contract and fedmtl_core."),
    Limit("Any, in all packages", 150, "mypy does not check values of type `Any`."),
    Limit("Any, in fedmtl_server/access", 10, "mypy must check the code that decides on access."),
    Limit(
        "modules that a file imports",
        20,
        "A file that imports more knows too many parts. Only the assembly of the server needs to know all parts.",
        ("fedmtl_server/assembly.py",),
    ),
)

# Each line is one layer: its package, then its folders and files (`*` stands for all). A file belongs to the layer with
# the longest entry that is a prefix of the file's path. A layer may import only from itself and from the lines above.
LAYERS = """
fedmtl_core        errors.py json_types.py __init__.py
fedmtl_core        addresses.py identifiers.py logs.py plugins.py randomness.py
fedmtl_core        tasks/
fedmtl_core        wire/
fedmtl_core        model/
fedmtl_core        config/
fedmtl_core        model/encoder_check.py model/adapter_check.py
fedmtl_core        runtime/

fedmtl_server      aggregation/
fedmtl_server      model_parts.py skeleton.py model.py
fedmtl_server      sharing/
fedmtl_server      aggregation_rules.py aggregation_setup.py
fedmtl_server      rounds/
fedmtl_server      storage/
fedmtl_server      saved_runs.py
fedmtl_server      starting_adapters.py starting_run.py initial_model.py
fedmtl_server      transfer/
fedmtl_server      events.py status.py
fedmtl_server      commits.py
fedmtl_server      run_spec.py run_log.py
fedmtl_server      round_updates.py open_round.py
fedmtl_server      audience.py driver.py
fedmtl_server      federation.py
fedmtl_server      rpc/
fedmtl_server      recovery.py
fedmtl_server      access/
fedmtl_server      monitoring/
fedmtl_server      assembly.py
fedmtl_server      server.py
fedmtl_server      api.py __init__.py
fedmtl_server      export/ model_doctor.py
fedmtl_server      doctor.py
fedmtl_server      commands/ __main__.py

fedmtl_client      tables.py partition.py
fedmtl_client      reading/
fedmtl_client      columns.py targets.py proposals.py label_cells.py overlap.py data.py batches.py
fedmtl_client      vocabulary.py fused_adapters.py
fedmtl_client      component_cache.py slices.py
fedmtl_client      base.py models.py proximal.py scaffold.py schedule.py synchronizer.py local_state.py trainer.py
fedmtl_client      progress.py feedback.py transport.py task_state.py
fedmtl_client      overlay.py variant_start.py trials.py worker.py
fedmtl_client      credentials.py failures.py interrupts.py patience.py transfers.py downloads.py uploads.py
fedmtl_client      connection.py messages.py
fedmtl_client      api.py
fedmtl_client      session.py
fedmtl_client      client.py __init__.py
fedmtl_client      client_file.py row_copies.py task_options.py options.py
fedmtl_client      model_doctor.py
fedmtl_client      doctor.py server_tasks.py init_sections.py cli.py doctor_cli.py init_cli.py __main__.py

fedmtl_local       *
fedmtl_experiment  *
benchmarks         *
tools              *
"""
