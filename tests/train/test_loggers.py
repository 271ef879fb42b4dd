"""Loggers get the rows of metrics.jsonl; services are imitated by modules that record what they are called with."""

import sys
from types import SimpleNamespace

import pytest
import yaml
from support.runs import arguments, rows

from atk.cli.main import main
from atk.train.log import RunLog

STEPS = [(1, {"loss": 2.0, "val/mAP@10": 30.0}), (2, {"loss": 1.5})]
EXPECTED = [({"train/loss": 2.0, "val/mAP@10": 30.0}, 1), ({"train/loss": 1.5}, 2)]


class Service(SimpleNamespace):
    """A module or run whose functions record their calls; `init` and `start_run` return it."""

    def __init__(self):
        super().__init__(calls=[], info=SimpleNamespace(run_id="7"))

    def __getattr__(self, name):
        def record(*args, **options):
            self.calls.append((name, args, options))
            return self

        return record

    def called(self, name):
        return [(args, options) for function, args, options in self.calls if function == name]


@pytest.fixture
def service(request, monkeypatch):
    fake = Service()
    monkeypatch.setitem(sys.modules, request.param, fake)
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    return request.param, fake


def log_steps(out, name):
    with RunLog(out, 0, [name], {"seed": 3, "optim": {"lr": 0.1}}) as log:
        for step, row in STEPS:
            log.write({"step": step, **row})


@pytest.mark.parametrize("service", ["wandb", "mlflow", "trackio"], indirect=True)
def test_services_get_every_row_and_work_offline(service, tmp_path):
    name, fake = service
    log_steps(tmp_path, name)
    logged = fake.called("log_metrics" if name == "mlflow" else "log")
    renamed = [
        ({n.replace("@", "_at_") if name == "mlflow" else n: v for n, v in row.items()}, s) for row, s in EXPECTED
    ]
    assert [(args[0], options["step"]) for args, options in logged] == renamed
    assert len(fake.called({"wandb": "finish", "mlflow": "end_run", "trackio": "finish"}[name])) == 1
    if name == "wandb":
        ((_, options),) = fake.called("init")
        assert options["mode"] == "offline" and options["dir"] == str(tmp_path) and options["config"]["seed"] == 3
    elif name == "mlflow":
        assert fake.called("set_tracking_uri") == [((f"sqlite:///{tmp_path / 'mlflow.db'}",), {})]
        assert fake.called("log_params") == [(({"seed": 3, "optim.lr": 0.1},), {})]
        fake.calls.clear()
        with RunLog(tmp_path, 2, [name]):  # a resumed run continues its run on the server
            assert fake.called("start_run") == [(((tmp_path / "mlflow_run").read_text(),), {})]
    else:
        ((_, options),) = fake.called("init")
        assert options["config"]["optim"] == {"lr": 0.1} and options["resume"] == "allow"


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_the_command_line_names_loggers(service, tiny_data, tmp_path):
    _, fake = service
    main([*arguments(tiny_data, tmp_path / "run", "--steps", "2"), "--loggers", "tensorboard", "wandb"])
    losses = [args[0]["train/loss"] for args, _ in fake.called("log") if "train/loss" in args[0]]
    assert losses == [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["loggers"] == ["tensorboard", "wandb"]


@pytest.mark.parametrize(
    ("loggers", "message"),
    [(["mlflow"], "loggers: needs mlflow; pip install mlflow"), (["paper"], "--loggers must be one of")],
)
def test_mistakes_cost_one_line_and_write_nothing(tiny_data, tmp_path, capsys, monkeypatch, loggers, message):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SystemExit) as stop:
        main([*arguments(tiny_data, tmp_path / "run", "--steps", "1"), "--loggers", *loggers])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error.splitlines()[-1], error
    assert not (tmp_path / "run").exists()
