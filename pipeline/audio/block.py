"""What decoders return: samples of a stretch, in pieces that fit into memory."""

import numpy as np
import numpy.typing as npt

Block = tuple[int, npt.NDArray[np.float32]]
"""Sample rate in Hz, and samples `[N, channels]`."""
