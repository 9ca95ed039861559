"""A job with a memory limit has less than the host."""

import psutil
import pytest

from moesaic.flow import memory


@pytest.mark.parametrize(("version", "line", "folder"), [(2, "0::/job/step", ""), (1, "7:cpuset:/other\n5:memory:/job/step", "memory")])  # fmt: skip
def test_limits_of_the_groups_above_count(tmp_path, monkeypatch, version, line, folder):
    monkeypatch.setattr(memory, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    host = psutil.virtual_memory().available
    assert memory.free() == pytest.approx(host, rel=0.2), "no control groups at all"
    (tmp_path / "groups").write_text(line + "\n")
    limit, usage, cached = memory.VERSIONS[folder]
    root = tmp_path / "cgroup" / folder

    def group(path, most, used, files):
        (root / path).mkdir(parents=True, exist_ok=True)
        (root / path / limit).write_text(f"{most}\n")
        (root / path / usage).write_text(f"{used}\n")
        (root / path / "memory.stat").write_text(f"anon 5\n{cached} {files}\n")

    group("job/step", "max" if version == 2 else 2**63 - 4096, 9_000_000, 0)
    assert memory.free() == pytest.approx(host, rel=0.2), "not limited"
    group("job", 50_000_000, 30_000_000, 10_000_000)
    assert memory.free() == 30_000_000, "cached files give way"
    (tmp_path / "groups").write_text(line.replace("/job/step", "/host/path/of/a/container") + "\n")
    group(".", 20_000_000, 5_000_000, 0)
    assert memory.free() == 15_000_000
