// Fields that no sane caller sends: each mutation is accepted or refused, and what is accepted then behaves.
//   fuzz library seed count     (library and this are built with -fsanitize=address,undefined)
#include <algorithm>
#include <random>

#include "check.h"
#include "host.h"
#include "symbolic.h"

using namespace nvinfer1;
using host::Fields;
using host::Made;

namespace {

std::mt19937 generator;

int32_t below(int32_t bound) { return int32_t(generator() % uint32_t(bound)); }

template <typename T>
T any_of(std::initializer_list<T> values) {
    return values.begin()[below(int32_t(values.size()))];
}

int32_t integer() {
    return below(2) ? any_of({0, 1, -1, 2, 15, 16, 17, 32, 63, 64, 65, 128, 4096, INT32_MAX, INT32_MIN, INT32_MAX - 62})
                    : int32_t(generator());
}

std::string bytes(int32_t longest) {
    std::string result(size_t(below(longest + 1)), ' ');
    for (char& c : result) c = char(below(4) ? 'a' + below(26) : int(generator()));
    return result;
}

struct Raw {
    std::string name;
    bool named = true;
    std::string data;
    bool has_data = true;
    PluginFieldType type;
    int32_t length;
};

template <typename T>
Raw raw(char const* name, T value, PluginFieldType type) {
    return {name, true, std::string(reinterpret_cast<char const*>(&value), sizeof value), true, type, 1};
}

Raw text(char const* name, std::string value) {
    return {name, true, value, true, PluginFieldType::kCHAR, int32_t(value.size())};
}

std::vector<Raw> valid() {
    auto const i32 = PluginFieldType::kINT32;
    std::vector<Raw> fields = {raw("n", any_of({1, 64, 100, 3072}), i32), raw("k", any_of({1, 64, 200, 5600}), i32),
                               raw("layout_version", SVDQ_LAYOUT_VERSION, i32)};
    if (below(2)) fields.push_back(raw("rank", any_of({0, 16, 128}), i32));
    if (below(2)) fields.push_back(raw("group_size", any_of({64, 128}), i32));
    if (below(2)) fields.push_back(raw("act_bits", any_of({4, 8}), i32));
    if (below(2)) fields.push_back(raw("act_signed", below(2), i32));
    if (below(2)) fields.push_back(raw("act_shift", any_of({0.0F, 0.171875F}), PluginFieldType::kFLOAT32));
    if (below(2)) fields.push_back(text("activation", any_of({"none", "gelu_tanh", "silu"})));
    if (below(4) == 0) fields.push_back(text("plugin_version", "1"));
    return fields;
}

size_t size_of(PluginFieldType type) {
    switch (type) {
        case PluginFieldType::kINT8:
        case PluginFieldType::kCHAR: return 1;
        case PluginFieldType::kFLOAT16:
        case PluginFieldType::kINT16: return 2;
        case PluginFieldType::kFLOAT64:
        case PluginFieldType::kINT64: return 8;
        case PluginFieldType::kDIMS: return sizeof(Dims);
        default: return 4;
    }
}

// A caller may be wrong in everything but this: a field's data has `length` values of `type`.
void mutate(std::vector<Raw>& fields) {
    if (fields.empty()) return;
    Raw& field = fields[size_t(below(int32_t(fields.size())))];
    switch (below(14)) {
        case 0: field.type = PluginFieldType(integer()); break;
        case 1:
            field.type = PluginFieldType(below(13));
            field.data.resize(size_of(field.type) * size_t(std::max(field.length, 0)));
            break;
        case 2:
            field.length = below(40);
            field.data.resize(size_of(field.type) * size_t(field.length));
            break;
        case 3: field.length = -below(INT32_MAX); break;
        case 4: field.has_data = false; break;
        case 5: field.named = false; break;
        case 6:
            field.name = bytes(70);
            field.name.erase(std::min(field.name.find('\0'), field.name.size()));
            break;
        case 7: field.name += any_of({"_", "1", " "}); break;
        case 8: fields.push_back(Raw(field)); break;
        case 9: fields.erase(fields.begin() + (&field - fields.data())); break;
        case 10: field = text("activation", below(3) ? bytes(20) : bytes(100000)); break;
        case 11:
            field = raw("act_shift",
                        below(2) ? any_of({1e-45F, -0.0F, 3e38F, 1.0F / 0.0F, __builtin_nanf("")}) : float(integer()),
                        PluginFieldType::kFLOAT32);
            break;
        case 12:
            field = raw(field.name.c_str(), int64_t(integer()) * any_of<int64_t>({1, 1, int64_t(1) << 31}),
                        PluginFieldType::kINT64);
            break;
        default:
            if (field.type == PluginFieldType::kINT32 && field.length == 1)
                field = raw(field.name.c_str(), integer(), PluginFieldType::kINT32);
            else if (!field.data.empty())
                field.data[size_t(below(int32_t(field.data.size())))] ^= char(1 << below(8));
    }
}

std::vector<int64_t> shape() {
    std::vector<int64_t> result(size_t(below(9)));
    for (int64_t& dimension : result)
        dimension = below(2) ? any_of<int64_t>({-1, 0, 1, 64, 200, 512, 1024, INT64_MAX, INT64_MIN}) : below(300);
    return result;
}

DynamicPluginTensorDesc tensor() {
    DynamicPluginTensorDesc result{};
    result.desc = host::desc(shape(), DataType(below(4) ? any_of({0, 1, 3, 7}) : integer()));
    result.desc.format = TensorFormat(below(4) ? 0 : integer());
    result.min = host::dims(shape());
    result.opt = host::dims(shape());
    result.max = host::dims(shape());
    if (below(4) == 0) result.desc.dims.nbDims = integer();
    if (below(4) == 0) result.max.nbDims = integer();
    return result;
}

// Calls what takes shapes and types with some of neither.
void use(Made& plugin) {
    int32_t const count = any_of({0, 1, 4, 5, 6, 7, 8});
    std::vector<DynamicPluginTensorDesc> tensors;
    std::vector<PluginTensorDesc> descs;
    std::vector<DataType> types;
    std::vector<DimsExprs> expressions;
    symbolic::Builder builder;
    for (int32_t i = 0; i < count + 1; ++i) {
        tensors.push_back(tensor());
        descs.push_back(tensors.back().desc);
        types.push_back(tensors.back().desc.type);
        expressions.push_back(builder.dims(shape()));
    }
    DataType type;
    DimsExprs y{};
    plugin.build->getOutputDataTypes(&type, 1, types.data(), count);
    plugin.build->getOutputShapes(expressions.data(), count, nullptr, 0, &y, 1, builder);
    plugin.build->supportsFormatCombination(below(count + 1), tensors.data(), count, 1);
    plugin.build->supportsFormatCombination(integer(), tensors.data(), count, 1);
    plugin.build->configurePlugin(tensors.data(), count, tensors.data() + count, 1);
    plugin.build->getWorkspaceSize(tensors.data(), count, tensors.data() + count, 1);
    std::vector<int32_t> tactics(size_t(plugin.build->getNbTactics()));
    plugin.build->getValidTactics(tactics.data(), int32_t(tactics.size()));
    plugin.runtime->setTactic(integer());
    plugin.runtime->onShapeChange(descs.data(), count, descs.data() + count, 1);
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return 2;
    host::Library const library = host::open_library(arguments[1]);
    generator.seed(uint32_t(atoi(arguments[2])));
    int const rounds = atoi(arguments[3]);
    int accepted[2] = {0, 0};
    std::vector<Raw> stored;  // what the last accepted plugin serialised
    for (int round = 0; round < rounds; ++round) {
        TensorRTPhase const phase = round % 2 ? TensorRTPhase::kRUNTIME : TensorRTPhase::kBUILD;
        std::vector<Raw> raws = phase == TensorRTPhase::kRUNTIME && !stored.empty() ? stored : valid();
        for (int times = below(4); times > 0; --times) mutate(raws);
        Fields fields;
        for (Raw const& one : raws) {
            fields.add(one.name, one.data.data(), one.has_data ? one.data.size() : 0, one.type, one.length);
            if (!one.named) fields.raw().back().name = nullptr;
        }
        PluginFieldCollection const* collection = fields.collection();
        PluginFieldCollection wrong{any_of({0, -1, INT32_MIN}), collection->fields};
        if (below(50) == 0) collection = &wrong;
        Made plugin = host::make(library, collection, phase);
        if (!plugin) continue;
        ++accepted[round % 2];
        use(plugin);
        // Whatever was accepted comes back from what it serialises.
        PluginFieldCollection const* again = plugin.runtime->getFieldsToSerialize();
        stored.clear();
        for (int32_t i = 0; i < again->nbFields; ++i) {
            PluginField const& field = again->fields[i];
            size_t const size = size_of(field.type) * size_t(field.length);
            stored.push_back({field.name, true, std::string(static_cast<char const*>(field.data), size), true,
                              field.type, field.length});
        }
        Made twin = host::make(library, again, TensorRTPhase::kRUNTIME);
        CHECK(bool(twin));
        EQUAL(plugin.build->getMetadataString(), twin.build->getMetadataString());
        Made copy(plugin.plugin->clone());
        plugin.plugin.reset();
        EQUAL(copy.build->getMetadataString(), twin.build->getMetadataString());
    }
    printf("%d %d\n", accepted[0], accepted[1]);
}
