"""How integers of 8 or 4 bits and their scales lie in memory (`ops.quantized.pack` puts them there).

calls.h has the same sizes, which are compared when the library is loaded.
"""

import torch

GROUP = 32  # neighbours along in_features that share a scale; as in llama.cpp's Q8_0 and Q4_0
ROWS, QUAD = 16, 4  # blocks of so many rows, a block in groups, a group in quads of neighbours
SCALE = torch.bfloat16  # the range of float32; a scale's own rounding is known when numbers are rounded to it
