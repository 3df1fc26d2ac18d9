"""printf and assert, whatever header a kernel's author includes for them."""

import numpy as np
import pytest
from sim_kernels import line_of

from lowlevel import cudasim


def test_printf_of_every_header_arrives_in_python(kernel, capsys):
    kernel("printing.cu", "say")((1,), (2,), (np.int32(3),))
    assert sorted(capsys.readouterr().out.splitlines()) == ["one 3", "one 3"] + ["two words"] * 2


def test_a_failing_assert_has_its_line_whatever_is_included(kernel):
    function = kernel("printing.cu", "check")
    function((1,), (32,), (np.full(1, 7, np.int32),))
    with pytest.raises(cudasim.KernelAssertionError, match=r"assert\(.*x\[0\] == 7\)") as caught:
        function((1,), (32,), (np.zeros(1, np.int32),))
    assert caught.value.line == line_of("printing.cu", "assert(threadIdx.x != 3")
    assert caught.value.thread == (3, 0, 0)
