// Why something was refused, as one sentence.
//
// TensorRT only learns "no": its logger is not ours to call (the vtable of ILoggerFinder differs between TensorRT 10
// and 11), so the sentence goes to stderr. Nothing here allocates or throws: callers are noexcept.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace svdq {

struct Reason {
    char text[320] = "";

    // Returns false, so that a check can end with it.
    __attribute__((format(printf, 2, 3))) bool refuse(char const* format, ...) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        return false;
    }

    // `subject` says which layer: a node's name, or its fields as `describe` writes them.
    void print(char const* subject) const { fprintf(stderr, "SvdqLinear %s: %s\n", subject, text); }
};

}  // namespace svdq
