"""Host memory: shared with children, there ahead of use, and no more of it than the machine and its groups allow."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path

import pytest

from safepoint import memory
from safepoint.memory import HostMemory, available_bytes, equal

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_host_memory_is_shared_with_children() -> None:
    """A child sees what its parent writes after the fork: the kernel copies no page of it for either."""
    view = HostMemory(4096).view(0, 4096)
    go, going = os.pipe()
    child = os.fork()
    if not child:
        os.read(go, 1)
        os._exit(view[0])
    view[0] = 7
    os.write(going, b"!")
    for descriptor in (go, going):
        os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_host_memory_has_whole_pages() -> None:
    """The size is rounded up, and the memory begins at a page: what O_DIRECT asks for."""
    for size_bytes, rounded_bytes in ((0, 4096), (1, 4096), (4096, 4096), (4097, 8192)):
        found = HostMemory(size_bytes)
        assert (found.size_bytes, found.address % 4096) == (rounded_bytes, 0)


def test_host_memory_that_is_not_granted_says_how_much() -> None:
    """A size that no machine has is an error with the number in it."""
    with pytest.raises(MemoryError, match=f"{1 << 60} bytes of host memory"):
        HostMemory(1 << 60)


def test_views_hold_the_memory() -> None:
    """A view is good for as long as somebody has it."""
    view = HostMemory(4096).view(10, 3)
    view[:] = b"abc"
    assert bytes(view) == b"abc"


@pytest.mark.parametrize("advice", [memory._MADV_POPULATE_WRITE, 12345], ids=["advised", "by reading"])
@pytest.mark.parametrize("asked_bytes", [5 * MIB, 100 * MIB])
def test_populate_brings_the_pages(monkeypatch: pytest.MonkeyPatch, advice: int, asked_bytes: int) -> None:
    """After it the pages are there, with what they held; also on a kernel that does not know the advice."""
    monkeypatch.setattr(memory, "_MADV_POPULATE_WRITE", advice)
    monkeypatch.setattr(memory, "_STRIDE_BYTES", 2 * MIB)
    found = HostMemory(9 * MIB)
    found.view(MIB, 5)[:] = b"there"
    found.populate(asked_bytes)
    assert _resident_bytes(found) >= min(asked_bytes, 9 * MIB)
    assert bytes(found.view(MIB, 5)) == b"there"


def test_populate_ends_where_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no page left to give, none is asked for in another way."""

    class Exhausted:
        @staticmethod
        def madvise(*arguments: object) -> int:
            ctypes.set_errno(errno.ENOMEM)
            return -1

    found = HostMemory(MIB)
    monkeypatch.setattr(memory, "_libc", Exhausted)
    found.populate(MIB)
    assert _resident_bytes(found) == 0


def test_memory_costs_nothing_before_it_is_touched() -> None:
    """Fresh memory is only an address."""
    assert _resident_bytes(HostMemory(9 * MIB)) == 0


def _resident_bytes(found: HostMemory) -> int:
    """Return how much of ``found`` the kernel has mapped, from proc_pid_smaps(5)."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{found.address:08x}-"):
            return next(int(each.split()[1]) << 10 for each in lines if each.startswith("Rss:"))
    raise AssertionError("not mapped")


@pytest.mark.parametrize("read_only", [False, True])
def test_equal_compares_all_bytes(*, read_only: bool) -> None:
    """Any byte that differs, and any length, makes a difference; read-only memory is compared too."""
    data = bytearray(os.urandom(10_000))
    first = memoryview(bytes(data)) if read_only else memoryview(bytearray(data))
    for at in (0, 5_000, 9_999):
        data[at] ^= 1
        assert not equal(first, memoryview(data))
        data[at] ^= 1
    assert equal(first, memoryview(data))
    assert not equal(first, memoryview(data)[:-1])
    assert equal(first[:0], memoryview(data)[:0])


# How much there is: files as the kernel writes them.

MEMINFO = "MemTotal:       24683656 kB\nMemFree:        18118888 kB\nMemAvailable:   20971520 kB\nBuffers:  123456 kB\n"
UNLIMITED_V1 = "9223372036854771712"


class Machine:
    """A ``/proc`` and the mounted control groups, in files."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.groups = root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(MEMINFO)

    def member(self, lines: str, *, root: str = "/") -> None:
        """Put the process into groups, of hierarchies that are mounted with ``root`` as their top."""
        (self.proc / "self" / "cgroup").write_text(lines)
        (self.proc / "self" / "mountinfo").write_text(
            "23 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
            f"32 31 0:29 / {self.groups}/cpu rw,relatime - cgroup cgroup rw,cpu\n"
            f"35 31 0:32 {root} {self.groups}/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
            f"41 31 0:38 {root} {self.groups}/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
        )

    def v2(self, path: str, limit: str, used: int, reclaimable: int = 0, high: str = "max") -> None:
        """Make a group of version 2."""
        group = self.groups / "unified" / path
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.high").write_text(f"{high}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 1\nfile 99\nactive_file 5\ninactive_file {reclaimable}\n")

    def v1(self, path: str, limit: str, used: int, reclaimable: int = 0) -> None:
        """Make a group of version 1."""
        group = self.groups / "memory" / path
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (group / "memory.usage_in_bytes").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {reclaimable}\n")

    @property
    def available_bytes(self) -> int:
        """What a process may still take here."""
        return available_bytes(self.proc)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine with 20 GiB available, and no groups yet."""
    return Machine(tmp_path)


def test_available_is_what_the_machine_has_left(machine: Machine) -> None:
    """Without groups, and with groups that limit nothing, the machine's own figure counts."""
    assert machine.available_bytes == 20 * GIB
    machine.member("4:memory:/job\n0::/job\n")
    machine.v1("", UNLIMITED_V1, 3 * GIB)
    machine.v1("job", UNLIMITED_V1, 2 * GIB)
    machine.v2("job", "max", 2 * GIB)
    assert machine.available_bytes == 20 * GIB


def test_available_heeds_the_group_of_the_process(machine: Machine) -> None:
    """A limit counts from what is used of it, less the page cache that can be reclaimed: version 2."""
    machine.member("0::/user.slice/job.scope\n")
    machine.v2("user.slice/job.scope", str(8 * GIB), 5 * GIB, reclaimable=2 * GIB)
    assert machine.available_bytes == 5 * GIB


def test_available_heeds_the_group_of_the_process_in_version_1(machine: Machine) -> None:
    """The same in version 1, where the figure for a group and those below it is called the total."""
    machine.member("12:cpu,cpuacct:/x\n4:memory:/slurm/job\n0::/\n")
    machine.v1("slurm/job", str(8 * GIB), 5 * GIB, reclaimable=2 * GIB)
    assert machine.available_bytes == 5 * GIB


def test_available_heeds_the_groups_above(machine: Machine) -> None:
    """A process may take what the narrowest of its nested groups leaves, up to the root of what is mounted."""
    machine.member("0::/a/b/c\n")
    machine.v2("a/b/c", str(8 * GIB), 1 * GIB)
    machine.v2("a/b", "max", 1 * GIB)
    machine.v2("a", str(4 * GIB), 1 * GIB)
    assert machine.available_bytes == 3 * GIB


def test_available_heeds_the_throttling_limit(machine: Machine) -> None:
    """What goes beyond memory.high is throttled, so it ends there."""
    machine.member("0::/a\n")
    machine.v2("a", str(8 * GIB), 1 * GIB, high=str(2 * GIB))
    assert machine.available_bytes == 1 * GIB


def test_available_in_a_container_that_sees_its_group_as_the_root(machine: Machine) -> None:
    """Where only the container's group is mounted, paths begin there; with a namespace they are even shorter."""
    for lines, root in (("4:memory:/docker/1f/job\n", "/docker/1f"), ("4:memory:/job\n", "/"), ("0::/\n", "/")):
        machine.member(lines, root=root)
        machine.v1("job", str(3 * GIB), 1 * GIB)
        machine.v2("", str(3 * GIB), 1 * GIB)
        assert machine.available_bytes == 2 * GIB


def test_available_in_a_group_outside_what_is_mounted(machine: Machine) -> None:
    """A group that lies elsewhere is not looked for; the mounted one is the best that is known."""
    machine.member("0::/../../outside\n")
    machine.v2("", str(3 * GIB), 1 * GIB)
    assert machine.available_bytes == 2 * GIB


def test_available_is_never_negative(machine: Machine) -> None:
    """A group that is over its limit leaves nothing."""
    machine.member("0::/a\n")
    machine.v2("a", str(1 * GIB), 2 * GIB)
    assert machine.available_bytes == 0


def test_available_without_a_figure_is_all_there_is(machine: Machine) -> None:
    """Where /proc tells nothing the memory of the machine is the answer."""
    (machine.proc / "meminfo").write_text("MemTotal:       24683656 kB\n")
    assert machine.available_bytes == mmap.PAGESIZE * os.sysconf("SC_PHYS_PAGES")
