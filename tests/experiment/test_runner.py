"""What cells are computed from."""

from rich.console import Console

from fedmtl_experiment.cells import plan
from fedmtl_experiment.progress import ConsoleProgress
from fedmtl_experiment.results import Folder
from fedmtl_experiment.runner import Runner
from tests.experiment.support import TOY, experiment


def test_an_auxiliary_task_trains_on_no_text_that_others_are_evaluated_on(tmp_path):
    words = {"type": "masked_lm", "text_columns": ["sentence"], "auxiliary": True, "data": {"builtin": "sst2"}}
    loaded = experiment(
        tmp_path,
        tasks={**TOY["tasks"], "words": words},
        settings={"tiny": {**TOY["settings"]["tiny"], "held_back_rows": 40}},
        methods={"mtl": {"base": "mtl", "auxiliary": {"words": {"train_rows": None}}}},
    )
    runner = Runner(loaded, Folder(tmp_path / "results"), ConsoleProgress(Console(), 0, 0))
    rows = runner.rows(plan(loaded)[0])
    evaluated = {texts for part in (rows["sst2"].validation, rows["sst2"].report) for texts in part.texts}
    evaluated |= set(rows["sst2"].held_back.texts)
    assert rows["words"].held_back is None
    assert len(rows["words"].train.texts) > 100
    assert not evaluated & set(rows["words"].train.texts)
