import pytest
import speed_search
from speed_measurements import CLOCK_VARIABLE, cost_of

from udmlss.search import index


def test_a_table_of_indexes_is_saved_with_its_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    monkeypatch.setattr(speed_search, "cost_in_process", cost_of)
    monkeypatch.setattr(index, "_EXACT", index._EXACT)  # is restored after the program has changed it
    monkeypatch.setenv(CLOCK_VARIABLE, "wall")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    speed_search.main(
        ["--shapes", "900x8,600x9", "--queries", "40", "--approximate", "--threads", "1", "--out", str(tmp_path)]
    )
    table = (tmp_path / "table.md").read_text()
    lines = [line.split(" | ") for line in table.splitlines() if " x " in line and line.startswith("|")]
    assert [line[:2] for line in lines] == [
        [f"| {shape}", kind] for shape in ("900 x 8", "600 x 9") for kind in ("clustered", "noisy")
    ]
    assert all(0.95 <= float(line[4]) < 1 and 0.85 < float(line[5]) <= 1 for line in lines)
    assert all(float(line[6].replace(",", "")) > 0 for line in lines)
    assert "`python benchmarks/speed_search.py --shapes 900x8,600x9 --queries 40" in table
    assert capsys.readouterr().out.splitlines() == table.splitlines()[:6]
