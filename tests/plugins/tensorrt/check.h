// Named cases for the hosts of this folder. pytest reads the names from the source and runs each in its own process:
//   host library case...        without cases, all
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace check {

struct Case {
    char const* name;
    void (*run)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

struct Register {
    Register(char const* name, void (*run)()) { cases().push_back({name, run}); }
};

[[noreturn]] inline void fail(char const* what, std::string const& seen, int line) {
    printf("line %d: %s%s\n", line, what, seen.c_str());
    fflush(stdout);
    _exit(1);
}

inline std::string shown(std::string const& value) { return '"' + value + '"'; }
inline std::string shown(char const* value) { return value == nullptr ? "null" : shown(std::string(value)); }
inline std::string shown(bool value) { return value ? "true" : "false"; }
inline std::string shown(float value) { return std::to_string(value); }
template <typename T>
std::string shown(T* value) {
    char text[32];
    snprintf(text, sizeof text, "%p", (void const*)value);
    return text;
}
template <typename T>
std::string shown(T value) {
    return std::to_string((long long)value);
}

template <typename A, typename B>
void equal(A const& a, B const& b, char const* what, int line) {
    if (!(a == b)) fail(what, ": " + shown(a) + " is not " + shown(b), line);
}
inline void equal(char const* a, char const* b, char const* what, int line) {
    if (std::strcmp(a, b) != 0) fail(what, ": " + shown(a) + " is not " + shown(b), line);
}

// What `body` writes to stderr.
template <typename Body>
std::string stderr_of(Body body) {
    fflush(stderr);
    FILE* file = tmpfile();
    int const saved = dup(2);
    dup2(fileno(file), 2);
    body();
    fflush(stderr);
    dup2(saved, 2);
    close(saved);
    std::string text(size_t(ftell(file) < 0 ? 0 : lseek(fileno(file), 0, SEEK_END)), '\0');
    if (pread(fileno(file), text.data(), text.size(), 0) != ssize_t(text.size())) abort();
    fclose(file);
    return text;
}

// Runs the cases that are named on the command line.
inline int run(int count, char** names) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    int ran = 0;
    for (Case const& one : cases()) {
        bool wanted = count == 0;
        for (int i = 0; i < count; ++i) wanted |= std::strcmp(names[i], one.name) == 0;
        if (!wanted) continue;
        one.run();
        printf("passed %s\n", one.name);
        ++ran;
    }
    return ran >= (count ? count : 1) ? 0 : 2;
}

}  // namespace check

#define CASE(name)                                               \
    static void name();                                          \
    static check::Register const registered_##name(#name, name); \
    static void name()
#define CHECK(condition) ((condition) ? void() : check::fail(#condition, "", __LINE__))
#define EQUAL(a, b) check::equal(a, b, #a, __LINE__)
// The sentence that refusing writes to stderr, and that it was refused.
#define REFUSED(expression, sentence)                                                                       \
    do {                                                                                                    \
        bool was_refused = false;                                                                           \
        std::string const said = check::stderr_of([&] { was_refused = (expression); });                     \
        if (!was_refused) check::fail(#expression, ": not refused", __LINE__);                              \
        if (said.find(sentence) == std::string::npos) check::fail(#expression, ": said " + said, __LINE__); \
    } while (false)
