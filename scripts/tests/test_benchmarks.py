"""Figures are summed up and compared the right way round."""

import unittest

from benchmarks.programs import Failed
from benchmarks.report import Item, Row, in_turns, meets
from benchmarks.resident import beyond_ram


class Program:
    """Stands for one side of a comparison."""

    def __init__(self, name: str):
        self.name = name


def mapping(start: str, name: str, size: int, rss: int) -> str:
    return (f"{start}-{start}f rw-s 00000000 00:01 17   {name}\nSize:  {size} kB\nRss: {rss} kB\nPss: {rss // 2} kB\n"
            f"Anonymous: {rss // 4} kB\nVmFlags: rd\n")


class Report(unittest.TestCase):
    def test_ratio_is_own_median_over_the_peers(self):
        row = Row("x", {"cardcage": [1.0, 2.0, 9.0], "qemu": [4.0, 4.0, 4.0]})
        self.assertEqual(row.ratio(), 0.5)

    def test_speeds_are_the_inverse_of_times(self):
        item = Item("x", "x", "s", higher_is_better=True)
        self.assertEqual(item.relative(Row("x", {"cardcage": [4.0], "qemu": [2.0]})), 0.5)

    def test_without_a_peer_there_is_no_ratio(self):
        self.assertIsNone(Row("x", {"cardcage": [1.0]}).ratio())

    def test_a_failed_run_is_reported_and_leaves_no_sample(self):
        def sample(program: Program) -> float:
            if program.name == "qemu":
                raise Failed("hung")
            return 1.0

        item = Item("x", "x", "s")
        row = in_turns(item, "boot", [Program("cardcage"), Program("qemu")], 2, sample)
        self.assertEqual(row.samples, {"cardcage": [1.0, 1.0], "qemu": []})
        self.assertEqual(item.failures, ["boot: qemu: hung"] * 2)

    def test_an_aim_has_a_direction(self):
        self.assertTrue(meets(1.0, ("<=", 1.1)))
        self.assertFalse(meets(0.4, (">=", 0.45)))


class Resident(unittest.TestCase):
    def test_guest_ram_does_not_count(self):
        smaps = (mapping("7f00", "/memfd:cardcage-ram (deleted)", 262144, 80000)
                 + mapping("7f10", "", 4096, 2048) + mapping("7f20", "/usr/lib/libc.so.6", 2048, 1024))
        self.assertEqual(beyond_ram(smaps, 256), {"Rss": 3.0, "Pss": 1.5, "Anonymous": 0.75})

    def test_ram_that_cannot_be_found_is_an_error(self):
        with self.assertRaises(Failed):
            beyond_ram(mapping("7f10", "", 4096, 2048), 256)
