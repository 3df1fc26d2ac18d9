"""Where the panel of unpacked bytes and what belongs to it lies."""

from lowlevel.cpu.jit import kernel

from .layouts import LANES, VECTOR, VECTORS


@kernel(inline=True)
def panel_sizes(job):
    """Bytes of the panel and of the scales of one vector of rows."""
    n_blocks = job.chunk // job.block_weights
    return n_blocks * job.panel_bytes * LANES, n_blocks * job.n_scales * VECTOR


@kernel(inline=True)
def places(job, place, width):
    """Addresses of the panel, its scales, and of bytes, scales and starts of x, for a group of columns and a chunk."""
    slot, first, _, memory, _, _ = place
    panel_bytes, _ = panel_sizes(job)
    done = slot * (job.columns // job.block_weights) + (first // job.block_weights) * width
    x = job.x_bytes + done * job.x_panel_bytes
    x_scales = job.x_scales + done * job.n_scales * 4
    x_starts = job.x_starts + done * job.n_starts * 4
    return memory, memory + VECTORS * panel_bytes, x, x_scales, x_starts
