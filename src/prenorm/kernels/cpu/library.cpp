// What the library reports about itself, so that it is never called with another struct layout. Built by build.py,
// which defines PRENORM_SOURCES: the digest of all sources.

#include "calls.h"

extern "C" const char *prenorm_sources() { return PRENORM_SOURCES; }

// The size of each struct of calls.h, in its order.
extern "C" const int64_t *prenorm_sizes() {
    static const int64_t sizes[] = {
        sizeof(MatmulCall),
        sizeof(SkinnyLinearCall),
        sizeof(QuantizedLinearCall),
        sizeof(ArgmaxCall),
        sizeof(CrossEntropyCall),
        sizeof(RmsNormCall),
        sizeof(RopeCall),
        sizeof(SiluGateCall),
        sizeof(DecodeAttentionCall),
        sizeof(AttentionCall),
        sizeof(MatrixPointers),
        sizeof(LayerPointers),
        sizeof(DecodeStepCall),
        0,
    };
    return sizes;
}
