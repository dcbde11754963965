"""vLLM is away, and SIGTERM comes under load. The long form of the outage is `python -m tests.outage`."""

import json
import signal
import time
from pathlib import Path

from deploy.local.processes import free_port, port_open
from streams.records import AcceptedPrompt, Message, encode
from tests.integration.test_recovery import haypile
from tests.outage import rss_mib
from tests.support.flow import prompts, wait_accounted
from tests.support.stack import Process, Topics, Worker, wait_for

WINDOW = 64
"""As the settings of these tests have it."""
DRAIN_S = 5.0
OVERHEAD_S = 6.0
"""Leaving the group, committing and closing, on a busy machine."""

LARGE, CHARS = 2_000, 50_000
"""100 MB that an unbounded worker would take into its memory."""
GROWTH_MIB = 60
"""A window and a stream's queue (512) of such records are 29 MB; the rest is for fetches and the allocator."""


def start_vllm(folder: Path, port: int, delay_s: float = 0.0) -> Process:
    process = Process(["-m", "tests.support.fake_vllm", str(port), str(delay_s)], folder / f"vllm-{port}.log")
    wait_for("the fake vLLM", lambda: port_open(port))
    return process


def accepted(number: int) -> bytes:
    text = f"{number} " + f"{number:x} word " * (CHARS // 12)
    id = f"a{number}"
    return encode(AcceptedPrompt(id=id, prompt_id=id, messages=[Message("user", text[:CHARS])], ts=1))


def ids(topics: Topics, topic: str) -> list[str]:
    return [record["id"] for record in topics.json(topic)]


def test_in_an_outage_consumption_stops_memory_is_bounded_and_work_goes_on_with_the_return(
    tmp_path: Path, topics: Topics, environ: dict[str, str]
) -> None:
    port = free_port()
    urls = json.dumps([f"http://127.0.0.1:{port}"])
    environ = {**environ, **{f"HAYPILE_{part}__URLS": urls for part in ("JUDGE", "ANSWER", "SERVING")}}
    begun = time.time()
    worker = Worker(tmp_path, "worker", "score", environ)
    vllm = None
    try:
        topics.send([accepted(i) for i in range(4)], topics.names.accepted)
        wait_for("the outage is noticed", lambda: worker.metrics().get('haypile_retries_total{hop="score"}'), 60)
        noticed = time.time()
        before = rss_mib(worker.popen.pid)
        topics.send([accepted(i) for i in range(4, LARGE)], topics.names.accepted)
        in_flight = 'haypile_records_in_flight{hop="score"}'
        wait_for("a full window", lambda: worker.metrics().get(in_flight, 0) >= WINDOW, 30)
        most = 0.0
        for _ in range(10):
            most = max(most, rss_mib(worker.popen.pid))
            assert worker.metrics()[in_flight] == WINDOW
            time.sleep(0.5)
        assert most - before < GROWTH_MIB, f"grew from {before:.0f} to {most:.0f} MiB"
        assert worker.handled("score") == 0

        status = json.loads(haypile(environ, "status", "--json", code=1))  # vLLM is down
        degraded = {line["what"]: line["since"] for line in status["degraded"]["lines"]}
        assert degraded.keys() >= {"score waits", "judge unreachable", f"circuit open: http://127.0.0.1:{port}"}
        assert begun < degraded["score waits"] < noticed, "since the first failure, not since the question"
        assert degraded["no worker runs curate"] is None
        assert "degraded        score waits since 20" in haypile(environ, "status", code=1)
        vllm = start_vllm(tmp_path, port)
        wait_for("it goes on within seconds", lambda: worker.handled("score"), 15)
        wait_for("all are rated", lambda: worker.handled("score") >= LARGE, 90, every_s=0.5)
        assert sorted(ids(topics, topics.names.scored)) == sorted(f"a{i}" for i in range(LARGE)), "each of them once"
        assert topics.json(topics.names.dead) == []

        def well() -> bool:
            lines = json.loads(haypile(environ, "status", "--json"))["degraded"]["lines"]
            return {line["what"] for line in lines} == {"no worker runs ingest", "no worker runs curate"}

        wait_for("nothing is degraded but the hops that nobody runs", well, 30)
    finally:
        worker.kill()
        if vllm is not None:
            vllm.kill()


def test_sigterm_under_load_ends_in_time_and_what_is_finished_is_committed(
    tmp_path: Path, topics: Topics, environ: dict[str, str]
) -> None:
    port = free_port()
    environ = {**environ, "HAYPILE_JUDGE__URLS": json.dumps([f"http://127.0.0.1:{port}"])}
    raw = prompts(2000, seed=6)
    vllm = start_vllm(tmp_path, port, 0.05)
    worker = Worker(tmp_path, "first", "ingest,score,curate", environ)
    try:
        topics.send([*raw.values()])
        wait_for("load", lambda: worker.handled("score") > 300, 60)
        started = time.monotonic()
        assert worker.terminate(DRAIN_S + OVERHEAD_S + 20) == 0
        assert time.monotonic() - started < DRAIN_S + OVERHEAD_S

        names = topics.names
        outcomes, _ = topics.accounted()
        scored = ids(topics, names.scored)
        done = {
            names.raw: set(ids(topics, names.accepted))
            | {id for id, outcome in outcomes.items() if outcome == "exact_repeat"},
            names.accepted: set(scored),
            names.scored: {id for id, outcome in outcomes.items() if outcome != "exact_repeat"},
        }
        assert 0 < len(scored) < len(raw), "it was under load"
        for topic, finished in done.items():
            committed = topics.committed(topic)
            flushed = {json.loads(value)["id"] for p, offset, value in topics.read(topic) if offset < committed[p]}
            assert flushed == finished, f"{topic}: what is committed is exactly what is done"

        # Now vLLM hangs: what is in progress cannot be finished, is given up after the deadline and done again.
        worker = Worker(tmp_path, "second", "ingest,score,curate", environ)
        wait_for("load again", lambda: worker.handled("score") > 100, 60)
        vllm.signal(signal.SIGSTOP)
        time.sleep(1)
        started = time.monotonic()
        assert worker.terminate(DRAIN_S + OVERHEAD_S + 20) == 0
        assert time.monotonic() - started < DRAIN_S + OVERHEAD_S
        assert "left for redelivery" in worker.text()

        vllm.signal(signal.SIGCONT)
        worker = Worker(tmp_path, "third", "ingest,score,curate", environ)
        wait_accounted(topics, set(raw), dead=0)
        for topic in (names.accepted, names.scored):
            found = ids(topics, topic)
            assert set(found) == set(raw)
            assert len(found) - len(raw) <= WINDOW, "at most a window is repeated"
    finally:
        worker.kill()
        vllm.signal(signal.SIGCONT)
        vllm.kill()
