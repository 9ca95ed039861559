"""The command that opens MLflow exists where it is printed."""

from pathlib import Path

from moesaic.flow import ui

ROOT = Path(__file__).parents[2]


def test_the_command_fits_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert ui.command() == ui.command("sqlite:///mlflow.db") == "make ui"
    assert (
        ui.command("sqlite:///other.db")
        == "mlflow ui --backend-store-uri sqlite:///other.db --host 127.0.0.1"
    )
    monkeypatch.chdir(tmp_path)
    assert ui.command() == "mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1"
    (tmp_path / "Makefile").write_text("all:\n\techo other\n")
    assert ui.command() == "mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1"
    assert ui.command("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert ui.command("http://me:secret@server:5000/x") == "http://me:***@server:5000/x"
    assert "postgresql://me:***@server/runs " in ui.command("postgresql://me:secret@server/runs")
