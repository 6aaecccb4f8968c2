"""A pytest plugin that counts what the long tests tried and what held, and writes the table of `what-is-tested.md`."""

from contextlib import contextmanager
from pathlib import Path

import pytest

HEADER = "| attack | what is done, and what must hold | tried | held | command |\n|---|---|---|---|---|\n"
ATTACKS = {
    "kills": "A training is killed by SIGKILL at a random moment, half of them while it saves. No completed checkpoint "
    "is lost, and the resumed run ends with the weights of the uninterrupted run, bit for bit.",
    "sigterm": "A training receives SIGTERM at a random moment. It saves a checkpoint and ends with exit "
    "code 143. Before the first step, the signal ends it without a checkpoint. The resumed run ends with the weights "
    "of the uninterrupted run, bit for bit.",
    "disk": "A file cannot grow beyond a random size while a checkpoint is saved. `fit` raises OSError, earlier "
    "checkpoints are unchanged, and the run can be resumed.",
    "interrupts": "Ctrl-C arrives at a random function call of `fit`, or at a random time. `fit` returns a result or "
    "raises KeyboardInterrupt, restores modes, random states and signal handlers, and leaves no process, open file or "
    "lock behind. The run can be resumed.",
    "checkpoints": "Bytes of a checkpoint or of its checksum are changed, removed or appended. The resumed run ends "
    "with the weights of the uninterrupted run, bit for bit, or an error says that all checkpoints are damaged.",
    "ranks": "One of two ranks is killed at a random moment. The other one ends within 30 seconds, and both can "
    "resume, bit for bit.",
    "errors": "One of two ranks raises an error at a random function call. Both ranks end within 30 seconds, and both "
    "can resume, bit for bit.",
    "images": "Bytes of an image file, of one of twelve formats, are changed or removed. Loading it raises an error "
    "that names the file, or returns pixels. A damaged PNG file never returns wrong pixels.",
    "archives": "Bytes of a .zip, .tar or .tgz archive are changed or removed. It is unpacked completely or not at "
    "all, and an archive with checksums (.zip, .tgz) never to other content.",
    "annotations": "Bytes of the lists and .mat files of the published datasets are changed or removed. They are "
    "rejected, or lead to no file outside of the dataset's folder.",
    "links": "Folders of images hold random links to each other. They are opened as torchvision opens them, and with "
    "cycles of links each image is found once.",
    "kmeans": "k-means runs on data sets that are ordinary, far from the origin, tiny, huge, or with far outliers. The "
    "objective is at most 1.2 times that of the best of ten runs of scikit-learn.",
}


class Attack:
    """The attempts of a test and those that did not hold."""

    def __init__(self):
        self.tried, self.failures = 0, []

    @contextmanager
    def attempt(self, case):
        """Count an attempt. It did not hold if the block raises an error, which is raised at the end of the test."""
        self.tried += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 (any error is a failure)
            self.failures.append(f"{case}: {type(error).__name__}: {error}")


@pytest.fixture
def attack(request):
    """Count the attempts of a test whose marker `slow` names one of the attacks."""
    name, counted = request.node.get_closest_marker("slow").kwargs["attack"], Attack()
    assert name in ATTACKS
    yield counted
    request.node.user_properties.append(("attack", [name, counted.tried, len(counted.failures)]))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Fail a test with a failed attempt. A test that ends early counts as one more attempt that did not hold."""
    counted = pyfuncitem.funcargs.get("attack", Attack())
    try:
        result = yield
    except BaseException:
        with counted.attempt("the test ended early"):
            raise
        raise
    assert not counted.failures, "\n".join([f"{len(counted.failures)} of {counted.tried} failed", *counted.failures])
    return result


def pytest_addoption(parser):
    """Add the option that `make attacks` uses."""
    parser.addoption("--what-is-tested", type=Path, metavar="PAGE", help="page whose table receives the counts")


def pytest_configure(config):
    """Collect the counts of all tests, and write them at the end."""
    config.pluginmanager.register(_Counts(), "counts of attacks")


class _Counts:
    """The counts of all attacks, from all workers of pytest-xdist."""

    def __init__(self):
        self.counts = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            for _, (name, tried, failed) in (each for each in report.user_properties if each[0] == "attack"):
                before = self.counts.get(name, (0, 0))
                self.counts[name] = (before[0] + tried, before[1] + failed)

    def pytest_terminal_summary(self, terminalreporter, config):
        for name, (tried, failed) in self.counts.items():
            terminalreporter.write_line(f"{name}: {tried} tried, {tried - failed} held")
        if self.counts and (page := config.option.what_is_tested) is not None:
            page.write_text(with_counts(page.read_text(), self.counts))


def with_counts(page, counts):
    """Return a page that ends with the table, with the rows of the counted attacks replaced."""
    text, _, table = page.partition(HEADER)
    rows = {row.split("|")[1].strip(): row for row in table.splitlines()}
    for name, (tried, failed) in counts.items():
        held = tried - failed
        rows[name] = f"| {name} | {ATTACKS[name]} | {tried} | {held} | `make attacks ONLY={name}` |"
    return text + HEADER + "".join(f"{rows[name]}\n" for name in ATTACKS if name in rows)
