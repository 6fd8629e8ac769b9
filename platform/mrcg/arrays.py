"""Types of arrays that several packages share, named by what they hold."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

#: Embeddings as they are stored.
Fp16Vectors: TypeAlias = npt.NDArray[np.float16]
#: Embeddings as they are computed with.
Fp32Vectors: TypeAlias = npt.NDArray[np.float32]
#: Embeddings of any precision.
Vectors: TypeAlias = npt.NDArray[np.floating[Any]]
#: Numbers of rows of a gallery, corpus or part; -1 pads lists of neighbours.
RowNumbers: TypeAlias = npt.NDArray[np.int64]
#: Which rows are meant.
Mask: TypeAlias = npt.NDArray[np.bool_]
#: Squared L2 distances.
Distances: TypeAlias = npt.NDArray[np.float32]
#: A number for each distinct value of a column, -1 where it is unknown.
Codes: TypeAlias = npt.NDArray[np.int64]
