"""What a step says of its speed."""

from scripts.lib.stage import throughput


def test_lines_come_now_and_then_and_at_the_end(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    speed = throughput.Throughput()
    now[0] = 102.0
    assert speed.line(500, 2, 8) is None
    now[0] = 110.0
    assert speed.line(500, 2, 6) == "100 tokens/s, 0:00:15 left"
    now[0] = 115.0
    assert speed.line(1000, 3, 3) is None
    assert speed.line(1000, 3, 0) == "200 tokens/s, 0:00:00 left"
    assert (speed.tokens, speed.per_second()) == (3000, 200.0)
