#include "fields.h"

#include <cmath>
#include <cstring>
#include <iterator>

namespace svdq {
namespace {

struct Row {
    char const* name;
    FieldType type;
    size_t offset;
    bool required;
};

// n, k and the layout have no default that could be right; the others have the op's.
constexpr Row kRows[] = {
    {"n", kInt32, offsetof(Values, n), true},
    {"k", kInt32, offsetof(Values, k), true},
    {"rank", kInt32, offsetof(Values, rank), false},
    {"group_size", kInt32, offsetof(Values, group_size), false},
    {"act_bits", kInt32, offsetof(Values, act_bits), false},
    {"act_signed", kInt32, offsetof(Values, act_signed), false},
    {"layout_version", kInt32, offsetof(Values, layout_version), true},
    {"act_shift", kFloat32, offsetof(Values, act_shift), false},
    {"activation", kChar, offsetof(Values, activation), false},
};
static_assert(std::size(kRows) == kFieldCount, "one row for each value");

// In the order of SvdqActivation.
constexpr char const* kActivations[] = {"none", "gelu_tanh", "silu"};

// Parsers look the node up by these, engines hand them back: neither is ours.
constexpr char const* kIgnored[] = {"plugin_version", "plugin_namespace"};

int32_t activation_of(char const* name) {
    for (int32_t i = 0; i < int32_t(std::size(kActivations)); ++i) {
        if (std::strcmp(name, kActivations[i]) == 0) return i;
    }
    return -1;
}

// Parsers differ in whether the text's length counts a final NUL, and the text may lack one.
bool read_activation(Field const& field, Values* values, Reason* reason) {
    auto const* text = static_cast<char const*>(field.data);
    auto const given = size_t(field.length);
    size_t const length = strnlen(text, given);
    if (length < sizeof values->activation && given <= length + 1) {
        char name[sizeof values->activation] = "";
        std::memcpy(name, text, length);
        if (activation_of(name) >= 0) {
            std::memcpy(values->activation, name, sizeof name);
            return true;
        }
    }
    return reason->refuse("activation is \"%.*s\"; it must be none, gelu_tanh or silu", int(length < 32 ? length : 32),
                          text);
}

}  // namespace

Field field_of(Values const& values, int32_t index) {
    Row const& row = kRows[index];
    int32_t const length = row.type == kChar ? int32_t(std::strlen(values.activation)) + 1 : 1;
    return {row.name, reinterpret_cast<char const*>(&values) + row.offset, row.type, length};
}

SvdqLayer layer_of(Values const& values, int32_t dtype) {
    return {values.n,
            values.k,
            values.rank,
            values.group_size,
            values.act_bits,
            values.act_signed,
            activation_of(values.activation),
            dtype,
            values.act_shift};
}

void describe(Values const& values, char (&text)[kDescriptionSize]) {
    uint32_t shift;  // its bits: a decimal would round
    std::memcpy(&shift, &values.act_shift, sizeof shift);
    snprintf(text, sizeof text, "n%d_k%d_r%d_g%d_a%d%c_%s_shift%08x_layout%d", values.n, values.k, values.rank,
             values.group_size, values.act_bits, values.act_signed ? 's' : 'u', values.activation, shift,
             values.layout_version);
}

bool FieldReader::take(Field const& field) {
    if (field.name == nullptr) return reason_.refuse("a field has no name");
    for (char const* ignored : kIgnored) {
        if (std::strcmp(field.name, ignored) == 0) return true;
    }
    int32_t index = 0;
    while (index < kFieldCount && std::strcmp(field.name, kRows[index].name) != 0) ++index;
    if (index == kFieldCount) return reason_.refuse("there is no attribute %.64s", field.name);
    Row const& row = kRows[index];
    if ((seen_ >> index & 1U) != 0) return reason_.refuse("%s is given twice", row.name);
    seen_ |= 1U << index;

    bool const wide = row.type == kInt32 && field.type == kInt64;  // ONNX's own integer type
    if ((field.type != row.type && !wide) || field.data == nullptr) {
        return reason_.refuse("%s has field type %d; it must be %d, with data", row.name, field.type, row.type);
    }
    if (row.type == kChar ? field.length < 1 : field.length != 1) {
        return reason_.refuse("%s has %d values; it must have one", row.name, field.length);
    }
    if (row.type == kChar) return read_activation(field, &values_, &reason_);

    auto* target = reinterpret_cast<char*>(&values_) + row.offset;
    if (!wide) {
        std::memcpy(target, field.data, sizeof(int32_t));  // not *: an engine's data need not be aligned
        return true;
    }
    int64_t value;
    std::memcpy(&value, field.data, sizeof value);
    if (value != int32_t(value))
        return reason_.refuse("%s is %lld; it must fit in 32 bits", row.name, (long long)value);
    *reinterpret_cast<int32_t*>(target) = int32_t(value);
    return true;
}

bool FieldReader::finish() {
    for (int32_t index = 0; index < kFieldCount; ++index) {
        if (kRows[index].required && (seen_ >> index & 1U) == 0) {
            return reason_.refuse("attribute %s is missing", kRows[index].name);
        }
    }
    if (values_.layout_version != SVDQ_LAYOUT_VERSION) {
        return reason_.refuse(
            "the weights are packed in layout %d and this library reads layout %d: build the model again, or use the "
            "plugin it was built with",
            values_.layout_version, SVDQ_LAYOUT_VERSION);
    }
    // Not left to the kernels: `describe` writes anything but 0 as signed.
    if (values_.act_signed < 0 || values_.act_signed > 1) {
        return reason_.refuse("act_signed is %d; it must be 0 or 1", values_.act_signed);
    }
    SvdqLayer const layer = layer_of(values_);
    int32_t const status = std::isfinite(values_.act_shift) ? svdq_check_layer(&layer) : int32_t(SVDQ_BAD_LAYER);
    if (status != SVDQ_OK) {
        char text[kDescriptionSize];
        describe(values_, text);
        return reason_.refuse("no such layer (%s, act_shift %g): %s", text, double(values_.act_shift),
                              svdq_status_text(status));
    }
    return true;
}

}  // namespace svdq
