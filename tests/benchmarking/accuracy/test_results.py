"""Files of lines: results, queues and costs."""

from __future__ import annotations

import json
from threading import Thread

import pytest

from benchmarks.accuracy import command, costs, execute
from benchmarks.accuracy.command import main
from benchmarks.accuracy.runs import append_line, read_lines, read_queue, results_file
from nnunet_transformers._reading import RefusedError

from .helpers import STOCK


class TestResults:
    def test_lines_of_several_writers_are_whole(self, tmp_path):
        records = [{"writer": writer, "text": "x" * 50_000} for writer in range(8)]
        threads = [Thread(target=append_line, args=(tmp_path / "results.jsonl", record)) for record in records]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(read_lines(tmp_path / "results.jsonl"), key=lambda r: r["writer"]) == records

    def test_full_disk(self, tmp_path, monkeypatch):
        path = tmp_path / "results.jsonl"
        append_line(path, {"a": 1})
        write = execute.os.write
        with monkeypatch.context() as context:
            context.setattr(execute.os, "write", lambda descriptor, line: write(descriptor, line[:3]))
            with pytest.raises(OSError, match="no space"):
                append_line(path, {"b": 2})
        append_line(path, {"c": 3})
        assert read_lines(path) == [{"a": 1}, {"c": 3}]

    def test_full_disk_beside_another_writer(self, tmp_path, monkeypatch):
        """What the other one appends stays whole."""
        path, write = tmp_path / "results.jsonl", execute.os.write
        append_line(path, {"a": 1})
        other = Thread(target=append_line, args=(path, {"c": 3}))

        def write_a_part(descriptor, line):
            monkeypatch.setattr(execute.os, "write", write)
            written = write(descriptor, line[:3])
            other.start()
            other.join(0.3)
            return written

        monkeypatch.setattr(execute.os, "write", write_a_part)
        with pytest.raises(OSError, match="no space"):
            append_line(path, {"b": 2})
        other.join()
        assert read_lines(path) == [{"a": 1}, {"c": 3}]

    def test_line_that_is_being_appended(self, tmp_path, monkeypatch):
        """Readers wait until it is whole."""
        path, write, read = tmp_path / "results.jsonl", execute.os.write, []
        reader = Thread(target=lambda: read.extend(read_lines(path)))

        def write_in_parts(descriptor, line):
            written = write(descriptor, line[:3])
            reader.start()
            reader.join(0.3)
            return written + write(descriptor, line[3:])

        monkeypatch.setattr(execute.os, "write", write_in_parts)
        append_line(path, {"a": 1})
        reader.join()
        assert read == [{"a": 1}]

    def test_line_after_one_without_an_end(self, tmp_path):
        path = tmp_path / "results.jsonl"
        path.write_text('{"a": 1}')
        append_line(path, {"b": 2})
        assert read_lines(path) == [{"a": 1}, {"b": 2}]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"dataset": "em"', r"column 17: Expecting ',' delimiter"),
            ('{"dataset": "em\xff"}', "can't decode byte"),
            ("[1]", "no JSON object"),
            ('{"seed": 0}', "lacks dataset and row and budget and fold; a run has"),
            (json.dumps({**vars(STOCK), "row": ["mit"]}), r"no row \['mit'\]"),
        ],
    )
    def test_bad_line(self, tmp_path, monkeypatch, line, reason):
        """Errors say where it is, of the queue and of the results alike."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        path = results_file()
        append_line(path, vars(STOCK))
        path.write_bytes(path.read_bytes() + b"\n" + line.encode("latin-1"))
        for read in (read_queue, lambda path: execute.finished_runs()):
            with pytest.raises(RefusedError, match=rf"results.jsonl, line 3[:,] .*{reason}"):
                read(path)
        with pytest.raises(SystemExit, match=r"results.jsonl, line 3"):
            main(["report", "--output", str(tmp_path / "page")])

    def test_mistyped_key(self, tmp_path):
        for key in ("seed", "threads"):
            record = {**vars(STOCK), "seeds" if key == "seed" else key: 1}
            path = tmp_path / "queue.jsonl"
            path.write_text(json.dumps({name: record[name] for name in record if name != "seed" or key != "seed"}))
            with pytest.raises(RefusedError, match=rf"queue.jsonl, line 1: a run has no {key}s?$"):
                read_queue(path)

    def test_cost_without_a_name(self, tmp_path, monkeypatch):
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        append_line(costs.costs_file(), {"dataset": "em", "seconds": 1.0})
        with pytest.raises(RefusedError, match=r"costs.jsonl, line 1: lacks row"):
            costs.read_costs()

    def test_files_that_do_not_exist(self, tmp_path, monkeypatch):
        """Or hold no runs; nothing is written."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
        monkeypatch.setattr(command.os, "nice", lambda by: by, raising=False)
        monkeypatch.setattr(command.signal, "signal", lambda number, handler: None)
        empty, missing = tmp_path / "empty.jsonl", tmp_path / "none.jsonl"
        empty.touch()
        for path in (empty, missing):
            with pytest.raises(SystemExit, match=rf"{path.name} has no runs, or does not exist"):
                main(["run", "--queue", str(path)])
        output = ["--output", str(tmp_path / "page")]
        with pytest.raises(SystemExit, match=r"none.jsonl: no such file"):
            main(["report", str(empty), str(missing), *output])
        for words, name in (([str(empty)], "empty.jsonl"), ([], "results.jsonl")):
            with pytest.raises(SystemExit, match=rf"no finished runs in \S*{name}"):
                main(["report", *words, *output])
        assert not list(tmp_path.glob("page*"))
