// decode_step.h for models in float32. Built by build.py.

#include "decode_step.h"

// What Python calls: 0 is given, 1 where memory ran out, or 2 for a token outside the vocabulary, with nothing done.

extern "C" int decode_step_float32(const DecodeStepCall *call) { return decode_step<float>(*call); }
