import json
import struct

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from metarun.errors import MetarunError
from metarun.training import metrics


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def write_steps(directory, resume_step, steps):
    logger = metrics.jsonl(directory, resume_step)
    for step in steps:
        logger.write(step, {"train/loss": 1 / step})
    logger.close()


def test_a_line_is_on_disk_when_write_returns(tmp_path):
    logger = metrics.jsonl(tmp_path, 0)
    logger.write(5, {"seconds": 1.5, "train/loss": 0.25})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 5, "seconds": 1.5, "train/loss": 0.25}\n'
    logger.close()


def test_what_json_cannot_say_is_null(tmp_path):
    logger = metrics.jsonl(tmp_path, 0)
    logger.write(1, {"nan": float("nan"), "inf": float("-inf"), "rate": None})
    logger.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "nan": null, "inf": null, "rate": null}\n'


def test_later_lines_go_on_resuming(tmp_path):
    write_steps(tmp_path, 0, [10, 20, 30, 40])
    write_steps(tmp_path, 20, [30])
    assert lines(tmp_path) == [{"step": s, "train/loss": 1 / s} for s in (10, 20, 30)]


def test_a_new_run_starts_an_empty_file(tmp_path):
    write_steps(tmp_path, 0, [10, 20])
    metrics.jsonl(tmp_path, 0).close()
    assert lines(tmp_path) == []


@pytest.mark.parametrize(
    "broken", [b"\0\0\0", b"\xff\xfe", b'{"step": "20"}', b'{"step": tru', b"[1]", b"[" * 50_000, b""]
)
def test_a_broken_line_costs_no_other(tmp_path, broken):
    write_steps(tmp_path, 0, [10, 20, 30])
    lines_of = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(lines_of[0] + broken + b"\n" + b"".join(lines_of[1:]))
    write_steps(tmp_path, 20, [40])
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 40]


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    for target in ("precious", "absent"):
        (tmp_path / "run" / "metrics.jsonl").unlink(missing_ok=True)
        (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / target)
        with pytest.raises(MetarunError, match="Cannot write .*metrics.jsonl"):
            metrics.jsonl(tmp_path / "run", 0)
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "absent").exists()


@pytest.mark.parametrize("when", ["opened", "written", "closed"])
def test_a_logger_that_fails_is_said_once_and_ends_no_run(tmp_path, when):
    def fails(now):
        if now == when:
            raise RuntimeError("no\nserver")

    def factory(directory, resume_step):
        fails("opened")
        return metrics.Logger(lambda step, values: fails("written"), lambda: fails("closed"))

    said = []
    logger = metrics.unfailing(factory, tmp_path, 0, said.append)
    logger.write(1, {})
    logger.write(2, {})
    logger.close()
    assert len(said) == 1 and said[0].startswith("metarun: ") and said[0].endswith("RuntimeError: no server")


@pytest.mark.parametrize("half", ['{"step": 30, "tra', '{"step": 30}', "\0\0\0\n", '"text"\n', "{}\n"])
def test_a_broken_end_goes_on_resuming(tmp_path, half):
    write_steps(tmp_path, 0, [10, 20])
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write(half)
    write_steps(tmp_path, 40, [50])
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 50]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(MetarunError, match=r"Cannot write .*metrics\.jsonl: Is a directory"):
        metrics.jsonl(tmp_path, 0)


def events(path):
    """Reads a TFRecord file: length, checksum of the length, data, checksum of the data."""

    def checksum(data):
        crc = crc32c(data)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32

    data, found = path.read_bytes(), []
    while data:
        length, length_crc = struct.unpack("<QI", data[:12])
        record, (record_crc,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
        assert (length_crc, record_crc) == (checksum(data[:8]), checksum(record))
        found.append(Event.FromString(record))
        data = data[16 + length :]
    return found


def test_tensorboard_events(tmp_path):
    logger = metrics.tensorboard(tmp_path, 20)
    logger.write(30, {"train/loss": 0.5, "val/accuracy": 0.75, "tasks_per_second": None})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    version, start, written = events(path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (21, SessionLog.START)
    assert written.step == 30
    assert {value.tag: value.simple_value for value in written.summary.value} == {
        "train/loss": 0.5,
        "val/accuracy": 0.75,
    }
    logger.close()


def test_each_piece_of_a_run_has_its_own_event_file(tmp_path):
    for _ in range(3):
        metrics.tensorboard(tmp_path, 0).close()
    assert len(list(tmp_path.iterdir())) == 3


def test_no_logger_writes_nothing(tmp_path):
    logger = metrics.no_logger(tmp_path, 0)
    logger.write(1, {"train/loss": 1.0})
    logger.close()
    assert list(tmp_path.iterdir()) == []
