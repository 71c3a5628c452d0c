"""A failed step's log: its end is what a person sees."""

from scripts.lib.planning import failures


def test_the_last_lines_of_each_failed_steps_log_are_shown(tmp_path, capsys):
    long, short = tmp_path / "long.log", tmp_path / "short.log"
    long.write_text("".join(f"line {number} {'x' * 3000}\n" for number in range(100)))
    short.write_bytes(b"started\nModuleNotFoundError: No module named '\xff'\n")
    failures.show([("train_sft", str(short)), ("train_dpo", str(long))], {"train_sft", "train_dpo"})
    said = capsys.readouterr().err
    assert said.index("train_dpo failed; the end of ") < said.index("train_sft failed; the end of ")
    assert f"    line 99 {'x' * 3000}\n" in said
    assert "line 80 " not in said
    assert said.endswith(f"{short}:\n    started\n    ModuleNotFoundError: No module named '\ufffd'\n")


def test_a_log_that_is_missing_or_empty_says_so_with_a_hint(tmp_path):
    (tmp_path / "empty.log").touch()
    assert failures.tail(tmp_path / "empty.log") == ["the log is empty. Hint: is there space left on the disk?"]
    (line,) = failures.tail(tmp_path / "gone.log")
    assert line.startswith("no log (No such file or directory). Hint: ")


def test_what_tells_the_terminal_what_it_finds_may_leave_its_log_empty(tmp_path, capsys):
    empty, crashed = tmp_path / "audit.log", tmp_path / "verify.log"
    empty.touch()
    crashed.write_text("KeyError\n")
    failures.show([("audit", str(empty)), ("verify", str(crashed))], {"train_sft"})
    assert capsys.readouterr().err == f"verify failed; the end of {crashed}:\n    KeyError\n"
    failures.show([("audit", str(empty))], {"audit"})
    assert "is there space left" in capsys.readouterr().err
