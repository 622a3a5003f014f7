// What the library says of itself, so that no other version of prenorm takes it for its own. Built by build.py, which
// defines PRENORM_SOURCES: the digest of all sources.

extern "C" const char *prenorm_sources() { return PRENORM_SOURCES; }
