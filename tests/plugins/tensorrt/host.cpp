// Calls every method of the TensorRT 10 plugin. The library is linked with fake_launch.cpp.
#include "host.h"

#include <functional>
#include <set>

#include "check.h"
#include "symbolic.h"

using namespace nvinfer1;
using host::desc;
using host::Fields;
using host::Made;

namespace {

host::Library library;

// n = 100 and k = 200 fill no block: 128 columns, 256 channels in four groups of 64 (two of 128).
Fields layer(int32_t rank = 32, std::function<void(Fields&)> const& more = {}) {
    Fields fields;
    fields.integer("n", 100).integer("k", 200).integer("rank", rank).integer("layout_version", SVDQ_LAYOUT_VERSION);
    if (more) more(fields);
    return fields;
}

Made made(Fields fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    Made result = host::make(library, fields.collection(), phase);
    CHECK(bool(result));
    return result;
}

using Shapes = std::vector<std::vector<int64_t>>;

// Written out, so that it shares nothing with the plugin. tests/plugins/tensorrt/test_shell.py compares with layout.py.
Shapes shapes(std::vector<int64_t> const& x, int32_t rank = 32) {
    Shapes result = {x, {2, 4, 512}, {4, 128}, {256}};
    if (rank) {
        result.push_back({4, rank / 16, 1024});
        result.push_back({2, rank / 16, 1024});
    }
    result.push_back({128});
    return result;
}

std::vector<PluginTensorDesc> descs(Shapes const& all, DataType type = DataType::kHALF) {
    std::vector<PluginTensorDesc> result;
    for (size_t i = 0; i < all.size(); ++i) result.push_back(desc(all[i], i == 1 ? DataType::kINT32 : type));
    return result;
}

PluginTensorDesc output(std::vector<int64_t> x, DataType type = DataType::kHALF) {
    x.back() = 100;
    return desc(x, type);
}

// Inputs and then the output, as a profile bounds them.
std::vector<DynamicPluginTensorDesc> profile(std::vector<int64_t> min, std::vector<int64_t> opt,
                                             std::vector<int64_t> max, int32_t rank = 32,
                                             DataType type = DataType::kHALF) {
    std::vector<DynamicPluginTensorDesc> result;
    for (PluginTensorDesc const& one : descs(shapes(max, rank), type))
        result.push_back({one, one.dims, one.dims, one.dims});
    result[0].min = host::dims(min);
    result[0].opt = host::dims(opt);
    result.push_back({output(max, type), {}, {}, {}});
    return result;
}

int32_t configure(Made& plugin, std::vector<DynamicPluginTensorDesc> const& tensors) {
    int32_t const inputs = int32_t(tensors.size()) - 1;
    return plugin.build->configurePlugin(tensors.data(), inputs, tensors.data() + inputs, 1);
}

std::set<int32_t> tactics(Made& plugin) {
    std::vector<int32_t> values(size_t(plugin.build->getNbTactics()), -1);
    EQUAL(plugin.build->getValidTactics(values.data(), int32_t(values.size())), 0);
    return {values.begin(), values.end()};
}

// What the launch needs for one call of enqueue.
struct Call {
    std::vector<PluginTensorDesc> inputs;
    PluginTensorDesc y;
    std::vector<char> memory = std::vector<char>(1 << 20);
    std::vector<void const*> pointers;
    void* out;
    void* workspace;
    cudaStream_t stream;

    explicit Call(std::vector<int64_t> const& x, int32_t rank = 32, DataType type = DataType::kHALF)
        : inputs(descs(shapes(x, rank), type)), y(output(x, type)) {
        char* at = memory.data();
        for (size_t i = 0; i < inputs.size(); ++i) pointers.push_back(at += 4096);
        out = memory.data() + 64 * 1024;
        workspace = memory.data() + 512 * 1024;
        stream = reinterpret_cast<cudaStream_t>(memory.data() + 1);
    }
    int32_t shape_change(IPluginV3OneRuntime* runtime) const {
        return runtime->onShapeChange(inputs.data(), int32_t(inputs.size()), &y, 1);
    }
    int32_t enqueue(IPluginV3OneRuntime* runtime) const {
        return runtime->enqueue(inputs.data(), &y, pointers.data(), &out, workspace, stream);
    }
};

std::string metadata(Made& plugin) { return plugin.build->getMetadataString(); }

bool refuses(Fields fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    return !host::make(library, fields.collection(), phase);
}

}  // namespace

// ---- creator --------------------------------------------------------------------------------------------------------

CASE(the_creator_names_itself_and_all_attributes_with_their_types) {
    EQUAL(library.creator->getPluginName(), "SvdqLinear");
    EQUAL(library.creator->getPluginVersion(), "1");
    EQUAL(library.creator->getPluginNamespace(), "");
    EQUAL(library.creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE");
    PluginFieldCollection const* names = library.creator->getFieldNames();
    std::string all;
    for (int32_t i = 0; i < names->nbFields; ++i) {
        all += std::string(names->fields[i].name) + ":" + std::to_string(int32_t(names->fields[i].type)) + " ";
    }
    EQUAL(all.c_str(),
          "n:5 k:5 rank:5 group_size:5 act_bits:5 act_signed:5 layout_version:5 act_shift:1 activation:6 ");
}

CASE(a_plugin_has_all_capabilities_in_both_phases) {
    for (TensorRTPhase phase : {TensorRTPhase::kBUILD, TensorRTPhase::kRUNTIME}) {
        Made plugin = made(layer(), phase);
        CHECK(plugin.core && plugin.build && plugin.runtime);
        EQUAL(plugin.plugin->getInterfaceInfo().kind, "PLUGIN");
        EQUAL(plugin.core->getInterfaceInfo().kind, "PLUGIN_V3ONE_CORE");
        EQUAL(plugin.build->getInterfaceInfo().kind, "PLUGIN_V3ONE_BUILD");
        EQUAL(plugin.runtime->getInterfaceInfo().kind, "PLUGIN_V3ONE_RUNTIME");
        EQUAL(plugin.core->getPluginName(), "SvdqLinear");
        EQUAL(plugin.core->getPluginVersion(), "1");
        EQUAL(plugin.core->getPluginNamespace(), "");
        EQUAL(plugin.build->getNbOutputs(), 1);
        CHECK(plugin.plugin->getCapabilityInterface(PluginCapabilityType(17)) == nullptr);
    }
}

CASE(missing_attributes_take_the_ops_defaults) {
    Fields fields;
    fields.integer("layout_version", SVDQ_LAYOUT_VERSION).integer("n", 100).integer("k", 200);
    Made plugin = made(std::move(fields));
    EQUAL(metadata(plugin).c_str(), "n100_k200_r0_g64_a4s_none_shift00000000_layout1");
}

CASE(every_attribute_arrives) {
    Made plugin = made(layer(48, [](Fields& f) {
        f.integer("group_size", 128)
            .integer("act_bits", 8)
            .integer("act_signed", 0)
            .real("act_shift", 0.171875F)
            .text("activation", "silu");
    }));
    EQUAL(metadata(plugin).c_str(), "n100_k200_r48_g128_a8u_silu_shift3e300000_layout1");
}

CASE(required_attributes_are_missed_by_name) {
    for (char const* missing : {"n", "k", "layout_version"}) {
        Fields fields;
        for (char const* name : {"n", "k", "layout_version"}) {
            if (strcmp(name, missing) != 0) fields.integer(name, name[0] == 'l' ? SVDQ_LAYOUT_VERSION : 64);
        }
        REFUSED(refuses(std::move(fields)), std::string("SvdqLinear node: attribute ") + missing + " is missing\n");
    }
    REFUSED(refuses(Fields()), "attribute n is missing");
    REFUSED(!host::make(library, nullptr), "attribute n is missing");
    PluginFieldCollection const hollow{3, nullptr};
    REFUSED(!host::make(library, &hollow), "attribute n is missing");
}

CASE(a_node_without_a_name_is_refused_all_the_same) {
    Fields fields;
    REFUSED(library.creator->createPlugin(nullptr, fields.collection(), TensorRTPhase::kBUILD) == nullptr,
            "attribute n is missing");
}

CASE(unknown_and_repeated_attributes_are_refused) {
    REFUSED(refuses(layer(32, [](Fields& f) { f.integer("alpha", 1); })), "there is no attribute alpha");
    REFUSED(refuses(layer(32, [](Fields& f) { f.integer("nn", 1); })), "there is no attribute nn");
    REFUSED(refuses(layer(32, [](Fields& f) { f.integer("", 1); })), "there is no attribute ");
    REFUSED(refuses(layer(32, [](Fields& f) { f.integer("k", 200); })), "k is given twice");
    Fields nameless = layer();
    nameless.raw()[0].name = nullptr;
    REFUSED(!host::make(library, nameless.collection()), "a field has no name");
}

CASE(what_a_parser_looks_the_plugin_up_by_is_ignored) {
    Made plugin = made(layer(0, [](Fields& f) { f.text("plugin_version", "1").text("plugin_namespace", "svdq"); }));
    EQUAL(metadata(plugin).c_str(), "n100_k200_r0_g64_a4s_none_shift00000000_layout1");
}

CASE(attributes_of_another_type_or_length_are_refused) {
    double const precise = 0.5;
    int32_t const two[2] = {64, 64};
    REFUSED(refuses(layer(32, [](Fields& f) { f.real("group_size", 64.0F); })),
            "group_size has field type 1; it must be 5");
    REFUSED(refuses(layer(32, [&](Fields& f) { f.add("act_shift", &precise, 8, PluginFieldType::kFLOAT64, 1); })),
            "act_shift has field type 2; it must be 1");
    REFUSED(refuses(layer(32, [&](Fields& f) { f.wide("act_shift", 0); })), "act_shift has field type 10");
    REFUSED(refuses(layer(32, [](Fields& f) { f.integer("activation", 0); })),
            "activation has field type 5; it must be 6");
    REFUSED(refuses(layer(32, [&](Fields& f) { f.add("group_size", two, 8, PluginFieldType::kINT32, 2); })),
            "group_size has 2 values");
    REFUSED(refuses(layer(32, [&](Fields& f) { f.add("group_size", two, 4, PluginFieldType::kINT32, 0); })),
            "group_size has 0 values");
    REFUSED(refuses(layer(32, [&](Fields& f) { f.add("group_size", two, 4, PluginFieldType::kINT32, -1); })),
            "group_size has -1 values");
    REFUSED(refuses(layer(32, [&](Fields& f) { f.add("activation", "", 1, PluginFieldType::kCHAR, 0); })),
            "activation has 0 values");
    REFUSED(refuses(layer(32, [](Fields& f) { f.add("act_bits", nullptr, 0, PluginFieldType::kINT32, 1); })),
            "act_bits has field type 5; it must be 5, with data");
}

CASE(integers_of_64_bits_are_accepted_where_they_fit) {
    Made plugin = made(layer(0, [](Fields& f) { f.wide("group_size", 128).wide("act_signed", 1); }));
    EQUAL(metadata(plugin).c_str(), "n100_k200_r0_g128_a4s_none_shift00000000_layout1");
    REFUSED(refuses(layer(0, [](Fields& f) { f.wide("group_size", (int64_t(1) << 32) + 64); })),
            "group_size is 4294967360; it must fit in 32 bits");
}

CASE(the_activation_may_end_with_a_nul_or_not) {
    for (std::string name : {"none", "gelu_tanh", "silu"}) {
        for (std::string end : {std::string(), std::string(1, '\0')}) {
            Made plugin = made(layer(0, [&](Fields& f) { f.text("activation", name + end); }));
            EQUAL(metadata(plugin), "n100_k200_r0_g64_a4s_" + name + "_shift00000000_layout1");
        }
    }
    for (std::string bad : {std::string("relu"), std::string("SILU"), std::string("sil"), std::string("silus"),
                            std::string(1, '\0'), std::string("silu\0\0", 6), std::string("none\0silu", 9),
                            std::string("gelu_tanh_tanh"), std::string(1000, 'g')}) {
        REFUSED(refuses(layer(0, [&](Fields& f) { f.text("activation", bad); })), "it must be none, gelu_tanh or silu");
    }
    REFUSED(refuses(layer(0, [](Fields& f) { f.text("activation", "relu"); })), "activation is \"relu\"");
}

CASE(another_layout_is_refused) {
    Fields fields;
    fields.integer("n", 64).integer("k", 64).integer("layout_version", SVDQ_LAYOUT_VERSION + 1);
    REFUSED(refuses(std::move(fields)), "packed in layout 2 and this library reads layout 1");
}

CASE(layers_that_the_kernels_do_not_have_are_refused) {
    REFUSED(refuses(layer(17)),
            "no such layer (n100_k200_r17_g64_a4s_none_shift00000000_layout1, act_shift 0): fake bad layer");
    REFUSED(refuses(layer(32, [](Fields& f) { f.integer("group_size", 32); })), "fake bad layer");
    REFUSED(refuses(layer(32, [](Fields& f) { f.integer("act_bits", 5); })), "fake bad layer");
    REFUSED(refuses(layer(32, [](Fields& f) { f.integer("act_signed", 2); })), "act_signed is 2; it must be 0 or 1");
    REFUSED(refuses(layer(32, [](Fields& f) { f.real("act_shift", 1.0F / 0.0F); })), "act_shift inf");
    REFUSED(refuses(layer(32, [](Fields& f) { f.real("act_shift", __builtin_nanf("")); })), "act_shift nan");
    for (char const* name : {"n", "k"}) {
        for (int32_t value : {0, -64}) {
            Fields fields;
            fields.integer("n", name[0] == 'n' ? value : 64)
                .integer("k", name[0] == 'k' ? value : 64)
                .integer("layout_version", 1);
            REFUSED(refuses(std::move(fields)), "fake bad layer");
        }
    }
}

CASE(data_need_not_be_aligned) {
    char buffer[2 * sizeof(int32_t) + 2] = {};
    int32_t const n = 321;
    memcpy(buffer + 1, &n, sizeof n);
    Fields fields;
    fields.integer("k", 64).integer("layout_version", 1);
    fields.raw().emplace_back("n", buffer + 1, PluginFieldType::kINT32, 1);
    Made plugin = made(std::move(fields));
    EQUAL(metadata(plugin).c_str(), "n321_k64_r0_g64_a4s_none_shift00000000_layout1");
}

// ---- build ----------------------------------------------------------------------------------------------------------

CASE(the_output_has_the_type_of_x) {
    Made plugin = made(layer(0));
    for (DataType type : {DataType::kHALF, DataType::kBF16}) {
        DataType inputs[5] = {type, DataType::kINT32, type, type, type}, y = DataType::kINT8;
        EQUAL(plugin.build->getOutputDataTypes(&y, 1, inputs, 5), 0);
        CHECK(y == type);
        REFUSED(plugin.build->getOutputDataTypes(&y, 1, inputs, 4) != 0,
                "it has 4 inputs and 1 outputs; rank 0 needs 5 and 1");
        REFUSED(plugin.build->getOutputDataTypes(&y, 2, inputs, 5) != 0, "needs 5 and 1");
    }
    DataType wide[5] = {DataType::kFLOAT, DataType::kINT32}, y;
    REFUSED(plugin.build->getOutputDataTypes(&y, 1, wide, 5) != 0,
            "x has TensorRT's data type 0; it must be float16 or bfloat16");
}

CASE(the_output_has_the_leading_dimensions_of_x_and_n_channels) {
    for (int32_t rank : {0, 32}) {
        Made plugin = made(layer(rank));
        for (std::vector<int64_t> const& x :
             {std::vector<int64_t>{200}, {7, 200}, {-1, 16, 200}, {-1, -1, 3, 4, 5, 6, 7, -1}}) {
            symbolic::Builder builder;
            std::vector<DimsExprs> inputs;
            for (auto const& shape : shapes(x, rank)) inputs.push_back(builder.dims(shape));
            DimsExprs y{};
            EQUAL(plugin.build->getOutputShapes(inputs.data(), int32_t(inputs.size()), nullptr, 0, &y, 1, builder), 0);
            EQUAL(y.nbDims, int32_t(x.size()));
            for (int32_t i = 0; i + 1 < y.nbDims; ++i) CHECK(y.d[i] == inputs[0].d[i]);
            CHECK(y.d[y.nbDims - 1]->isConstant());
            EQUAL(y.d[y.nbDims - 1]->getConstantValue(), 100);
        }
    }
}

CASE(wrong_shapes_are_refused_while_the_network_is_built) {
    Made plugin = made(layer());
    symbolic::Builder builder;
    auto refused = [&](Shapes const& all) {
        std::vector<DimsExprs> inputs;
        for (auto const& shape : all) inputs.push_back(builder.dims(shape));
        DimsExprs y{};
        return plugin.build->getOutputShapes(inputs.data(), int32_t(inputs.size()), nullptr, 0, &y, 1, builder) != 0;
    };
    REFUSED(refused(shapes({3, 201})), "x is [3, 201]; its last dimension must be k = 200");
    REFUSED(refused(shapes({})), "x is []");
    REFUSED(refused(shapes({3, 200}, 0)), "it has 5 inputs; rank 32 needs 7");
    REFUSED(refused({}), "it has 0 inputs");
    Shapes more = shapes({3, 200});
    more.push_back({128});
    REFUSED(refused(more), "it has 8 inputs");
    Shapes plain = shapes({3, 200});
    plain[1] = {100, 200};
    REFUSED(refused(plain), "qweight is [100, 200]; it must be [2, 4, 512]");
}

CASE(only_linear_tensors_of_the_right_types_are_supported) {
    DataType const types[] = {DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kINT32, DataType::kBOOL,
                              DataType::kUINT8, DataType::kFP8,  DataType::kBF16, DataType::kINT64, DataType::kINT4};
    TensorFormat const formats[] = {TensorFormat::kLINEAR, TensorFormat::kCHW2, TensorFormat::kHWC8,
                                    TensorFormat::kCHW32, TensorFormat::kHWC};
    for (int32_t rank : {0, 32}) {
        Made plugin = made(layer(rank));
        int32_t const inputs = rank ? 7 : 5;
        for (DataType x : types) {
            for (int32_t position = 0; position < inputs + 1; ++position) {
                for (DataType type : types) {
                    for (TensorFormat format : formats) {
                        // Tensors behind `position` hold what the plugin must not look at.
                        std::vector<DynamicPluginTensorDesc> tensors(size_t(inputs) + 1);
                        for (auto& tensor : tensors)
                            tensor.desc.type = DataType(99), tensor.desc.format = TensorFormat(99);
                        tensors[0].desc = desc({1}, x);
                        tensors[size_t(position)].desc.type = type;
                        tensors[size_t(position)].desc.format = format;
                        DataType const actual_x = tensors[0].desc.type;
                        bool const floats = actual_x == DataType::kHALF || actual_x == DataType::kBF16;
                        bool const good = format == TensorFormat::kLINEAR &&
                                          (position == 1 ? type == DataType::kINT32 : floats && type == actual_x);
                        EQUAL(plugin.build->supportsFormatCombination(position, tensors.data(), inputs, 1), good);
                    }
                }
            }
        }
        std::vector<DynamicPluginTensorDesc> tensors = profile({1, 200}, {1, 200}, {1, 200}, rank);
        CHECK(plugin.build->supportsFormatCombination(0, tensors.data(), inputs, 1));
        CHECK(!plugin.build->supportsFormatCombination(-1, tensors.data(), inputs, 1));
        CHECK(!plugin.build->supportsFormatCombination(inputs + 1, tensors.data(), inputs, 1));
        CHECK(!plugin.build->supportsFormatCombination(0, tensors.data(), inputs - 1, 1));
        CHECK(!plugin.build->supportsFormatCombination(0, tensors.data(), inputs, 0));
        CHECK(plugin.build->getFormatCombinationLimit() >= 2);
    }
}

CASE(a_profile_of_wrong_shapes_is_refused) {
    Made plugin = made(layer());
    EQUAL(configure(plugin, profile({1, 200}, {16, 200}, {64, 200})), 0);
    EQUAL(configure(plugin, profile({0, 8, 200}, {1, 8, 200}, {2, 8, 200})), 0);
    REFUSED(configure(plugin, profile({1, 200}, {16, 200}, {64, 200}, 0)) != 0, "it has 5 inputs; rank 32 needs 7");
    REFUSED(configure(plugin, profile({1, 199}, {16, 199}, {64, 199})) != 0, "x is [64, 199]");
    REFUSED(configure(plugin, profile({1, 200}, {1, 200}, {-1, 200})) != 0, "no kernel covers the profile, which has ");
    REFUSED(configure(plugin, profile({-1, 200}, {1, 200}, {1, 200})) != 0, "no kernel covers the profile, which has ");
    int64_t const huge = int64_t(1) << 40;
    REFUSED(configure(plugin, profile({1, 1, 200}, {1, 1, 200}, {huge, huge, 200})) != 0, "1 to -1 rows");
    EQUAL(configure(plugin, profile({1, 200}, {1, 200}, {kFakeMostRows, 200})), 0);
    REFUSED(configure(plugin, profile({1, 200}, {1, 200}, {kFakeMostRows + 1, 200})) != 0, "1 to 1048577 rows");
    REFUSED(configure(plugin, profile({1, 200}, {1, 200}, {1, 200}, 32, DataType::kFLOAT)) != 0,
            "no kernel covers the profile");
    for (size_t i = 1; i < 7; ++i) {
        for (size_t axis = 0; axis < shapes({1})[i].size(); ++axis) {
            for (int64_t by : {-1, 1}) {
                auto tensors = profile({1, 200}, {16, 200}, {64, 200});
                tensors[i].max.d[axis] += by;
                REFUSED(configure(plugin, tensors) != 0, "it must be [");
            }
        }
    }
}

CASE(the_workspace_is_for_the_largest_shape_of_the_profile) {
    for (DataType type : {DataType::kHALF, DataType::kBF16}) {
        Made plugin = made(layer());
        auto tensors = profile({1, 1, 200}, {2, 16, 200}, {4, 64, 200}, 32, type);
        EQUAL(configure(plugin, tensors), 0);
        SvdqLayer const expected{
            100, 200, 32, 64, 4, 1, SVDQ_NONE, type == DataType::kBF16 ? SVDQ_BFLOAT16 : SVDQ_FLOAT16, 0.0F};
        EQUAL(plugin.build->getWorkspaceSize(tensors.data(), 7, tensors.data() + 7, 1), fake_workspace(expected, 256));
    }
    Made plugin = made(layer());
    auto tensors = profile({1, 200}, {1, 200}, {1, 200}, 32, DataType::kFLOAT);
    EQUAL(plugin.build->getWorkspaceSize(tensors.data(), 7, tensors.data() + 7, 1), size_t(0));
    EQUAL(plugin.build->getWorkspaceSize(nullptr, 0, nullptr, 1), size_t(0));
}

CASE(tactics_are_the_tiles_that_are_valid_throughout_the_profile) {
    Made plugin = made(layer());
    CHECK(tactics(plugin).empty());
    auto configured = [&](std::vector<int64_t> const& min, std::vector<int64_t> const& max) {
        EQUAL(configure(plugin, profile(min, min, max)), 0);
        return tactics(plugin);
    };
    CHECK((configured({1, 200}, {16, 200}) == std::set<int32_t>{1, 2}));
    CHECK((configured({1, 200}, {64, 200}) == std::set<int32_t>{1}));
    CHECK((configured({1, 64, 200}, {4, 64, 200}) == std::set<int32_t>{1, 3}));
    CHECK((configured({2, 16, 200}, {2, 16, 200}) == std::set<int32_t>{1, 2}));
    int32_t more[4];
    CHECK(plugin.build->getValidTactics(more, 4) != 0);

    Made weights = made(layer(32, [](Fields& f) { f.integer("act_bits", 16); }));
    EQUAL(configure(weights, profile({1, 200}, {4, 200}, {8, 200})), 0);
    CHECK((tactics(weights) == std::set<int32_t>{4, 5}));
}

CASE(the_timing_cache_id_tells_layers_and_libraries_apart) {
    std::set<std::string> ids;
    auto add = [&](Fields fields) {
        Made plugin = made(std::move(fields));
        ids.insert(plugin.build->getTimingCacheID());
    };
    auto with = [&](int32_t rank, std::function<void(Fields&)> const& more) { add(layer(rank, more)); };
    with(32, {});
    with(16, {});
    with(0, {});
    with(32, [](Fields& f) { f.integer("group_size", 128); });
    with(32, [](Fields& f) { f.integer("act_bits", 8); });
    with(32, [](Fields& f) { f.integer("act_signed", 0); });
    with(32, [](Fields& f) { f.real("act_shift", 0.171875F); });
    with(32, [](Fields& f) { f.real("act_shift", 0.17187501F); });
    with(32, [](Fields& f) { f.text("activation", "silu"); });
    for (int32_t n : {100, 101}) {
        Fields fields;
        add(std::move(fields.integer("n", n).integer("k", 201).integer("layout_version", 1)));
    }
    EQUAL(ids.size(), size_t(11));
    for (std::string const& id : ids) CHECK(id.find("_0123456789abcdef") != std::string::npos);  // SVDQ_SOURCE_HASH
    for (std::string const& id : ids) CHECK(id.find("_layout1_") != std::string::npos);

    Made plugin = made(layer());
    std::string const before = plugin.build->getTimingCacheID();
    EQUAL(configure(plugin, profile({1, 200}, {2, 200}, {3, 200})), 0);
    EQUAL(std::string(plugin.build->getTimingCacheID()), before);
    EQUAL(std::string(Made(plugin.plugin->clone()).build->getTimingCacheID()), before);
}

// ---- runtime --------------------------------------------------------------------------------------------------------

CASE(what_is_serialised_makes_an_equal_plugin) {
    std::function<void(Fields&)> const variants[] = {
        [](Fields&) {}, [](Fields& f) { f.integer("group_size", 128).real("act_shift", 0.28125F); },
        [](Fields& f) { f.integer("act_bits", 8).integer("act_signed", 0).text("activation", "gelu_tanh"); },
        [](Fields& f) { f.integer("act_bits", 16).text("activation", std::string("silu\0", 5)); }};
    for (auto const& variant : variants) {
        for (int32_t rank : {0, 32}) {
            Made plugin = made(layer(rank, variant));
            PluginFieldCollection const* stored = plugin.runtime->getFieldsToSerialize();
            Made again = host::make(library, stored, TensorRTPhase::kRUNTIME);
            CHECK(bool(again));
            EQUAL(metadata(again), metadata(plugin));
            EQUAL(std::string(again.build->getTimingCacheID()), std::string(plugin.build->getTimingCacheID()));
            PluginFieldCollection const* twice = again.runtime->getFieldsToSerialize();
            EQUAL(stored->nbFields, 9);
            EQUAL(twice->nbFields, 9);
            for (int32_t i = 0; i < 9; ++i) {
                PluginField const &a = stored->fields[i], &b = twice->fields[i];
                EQUAL(a.name, b.name);
                CHECK(a.type == b.type && a.length == b.length && a.data != b.data);
                CHECK(memcmp(a.data, b.data, a.type == PluginFieldType::kCHAR ? size_t(a.length) : 4) == 0);
            }
        }
    }
}

CASE(shapes_and_types_are_checked_when_they_change) {
    Made plugin = made(layer());
    EQUAL(Call({3, 5, 200}).shape_change(plugin.runtime), 0);
    EQUAL(Call({200}).shape_change(plugin.runtime), 0);
    EQUAL(Call({0, 200}).shape_change(plugin.runtime), 0);
    for (size_t i = 0; i < 7; ++i) {
        Call call({3, 200});
        int32_t const axes = call.inputs[i].dims.nbDims;
        for (int32_t axis = i ? 0 : 1; axis < axes; ++axis) {
            for (int64_t by : {-1, 1}) {
                call = Call({3, 200});
                call.inputs[i].dims.d[axis] += by;
                REFUSED(call.shape_change(plugin.runtime) != 0, i ? "; it must be [" : "x is [3, ");
            }
        }
        for (int32_t rank : {axes + 1, axes - 1, 0, -1, 9}) {
            call = Call({3, 200});
            call.inputs[i].dims.nbDims = rank;
            REFUSED(call.shape_change(plugin.runtime) != 0, " is [");
        }
        call = Call({3, 200});
        call.inputs[i].format = TensorFormat::kCHW32;
        REFUSED(call.shape_change(plugin.runtime) != 0, "in format 5");
        call = Call({3, 200});
        call.inputs[i].type = DataType::kFLOAT;
        REFUSED(call.shape_change(plugin.runtime) != 0, "has data type 0");
    }
    Call call({3, 200});
    REFUSED(plugin.runtime->onShapeChange(call.inputs.data(), 5, &call.y, 1) != 0, "it has 5 inputs; rank 32 needs 7");
    REFUSED(plugin.runtime->onShapeChange(call.inputs.data(), 7, &call.y, 0) != 0, "it has 0 outputs");
    REFUSED(plugin.runtime->onShapeChange(nullptr, 0, &call.y, 1) != 0, "it has 0 inputs");
    for (int32_t axis : {0, 1}) {
        call = Call({3, 200});
        call.y.dims.d[axis] += 1;
        REFUSED(call.shape_change(plugin.runtime) != 0, "y is [");
    }
    call = Call({3, 200});
    call.y.type = DataType::kBF16;
    REFUSED(call.shape_change(plugin.runtime) != 0, "tensor 7 has data type");
}

CASE(enqueue_passes_everything_on) {
    for (int32_t rank : {0, 32}) {
        for (DataType type : {DataType::kHALF, DataType::kBF16}) {
            Made plugin =
                made(layer(rank, [](Fields& f) { f.text("activation", "gelu_tanh").real("act_shift", 0.25F); }));
            Call const call({3, 5, 200}, rank, type);
            EQUAL(call.shape_change(plugin.runtime), 0);
            int const before = library.fake->enqueued;
            EQUAL(call.enqueue(plugin.runtime), 0);
            FakeLaunch const& seen = *library.fake;
            EQUAL(seen.enqueued, before + 1);
            SvdqLayer const expected{100, 200, rank, 64, 4, 1, SVDQ_GELU_TANH, type == DataType::kBF16 ? 1 : 0, 0.25F};
            CHECK(memcmp(&seen.layer, &expected, sizeof expected) == 0);
            CHECK(seen.x == call.pointers[0]);
            CHECK(seen.constants.qweight == call.pointers[1]);
            CHECK(seen.constants.wscale == call.pointers[2]);
            CHECK(seen.constants.inv_smooth == call.pointers[3]);
            CHECK(seen.constants.down == (rank ? call.pointers[4] : nullptr));
            CHECK(seen.constants.up == (rank ? call.pointers[5] : nullptr));
            CHECK(seen.constants.bias == call.pointers[rank ? 6 : 4]);
            CHECK(seen.y == call.out);
            EQUAL(seen.m, 15);
            EQUAL(seen.tile, 1);
            CHECK(seen.workspace == call.workspace);
            EQUAL(seen.workspace_bytes, fake_workspace(expected, 15));
            CHECK(seen.stream == (void*)call.stream);
        }
    }
}

CASE(rows_are_the_product_of_the_leading_dimensions) {
    Made plugin = made(layer());
    struct {
        std::vector<int64_t> x;
        int64_t rows;
    } const all[] = {{{200}, 1}, {{7, 200}, 7}, {{2, 3, 4, 200}, 24}, {{1, 1, 1, 1, 1, 1, 9, 200}, 9}};
    for (auto const& one : all) {
        EQUAL(Call(one.x).enqueue(plugin.runtime), 0);
        EQUAL(library.fake->m, one.rows);
    }
    int const before = library.fake->enqueued;
    EQUAL(Call({4, 0, 200}).enqueue(plugin.runtime), 0);
    EQUAL(library.fake->enqueued, before);
}

CASE(a_tactic_is_a_tile_and_none_is_the_default) {
    Made plugin = made(layer());
    Call const few({8, 200}), many({100, 200});
    for (int32_t tactic = 1; tactic <= kFakeTiles; ++tactic) {
        EQUAL(plugin.runtime->setTactic(tactic), 0);
        EQUAL(few.enqueue(plugin.runtime), 0);
        EQUAL(library.fake->tile, tactic - 1);
    }
    EQUAL(plugin.runtime->setTactic(0), 0);
    EQUAL(few.enqueue(plugin.runtime), 0);
    EQUAL(library.fake->tile, 1);
    EQUAL(many.enqueue(plugin.runtime), 0);
    EQUAL(library.fake->tile, 0);
    for (int32_t tactic : {-1, kFakeTiles + 1, INT32_MAX, INT32_MIN}) {
        REFUSED(plugin.runtime->setTactic(tactic) != 0, "does not exist, this library has 5");
    }
    EQUAL(few.enqueue(plugin.runtime), 0);
    EQUAL(library.fake->tile, 1);
}

CASE(a_failing_launch_is_reported) {
    Made plugin = made(layer());
    library.fake->enqueue_status = SVDQ_NO_DRIVER;
    EQUAL(plugin.runtime->setTactic(2), 0);
    REFUSED(Call({8, 200}).enqueue(plugin.runtime) == SVDQ_NO_DRIVER,
            "enqueue of 8 rows with tactic 2: fake no driver");
    library.fake->enqueue_status = SVDQ_OK;
    EQUAL(Call({8, 200}).enqueue(plugin.runtime), 0);
}

CASE(attaching_loads_the_kernels_and_copies_the_plugin) {
    Made plugin = made(layer());
    EQUAL(plugin.runtime->setTactic(3), 0);
    for (int32_t status : {SVDQ_OK, SVDQ_NO_DRIVER}) {
        library.fake->prepare_status = status;
        int const before = library.fake->prepared;
        Made attached(plugin.runtime->attachToContext(nullptr));
        EQUAL(library.fake->prepared, before + 1);
        CHECK(bool(attached) && attached.plugin != plugin.plugin);
        EQUAL(metadata(attached), metadata(plugin));
        EQUAL(Call({8, 200}).enqueue(attached.runtime), 0);
        EQUAL(library.fake->tile, 2);
    }
    library.fake->prepare_status = SVDQ_OK;
}

CASE(a_clone_outlives_its_original) {
    Made plugin = made(layer());
    EQUAL(configure(plugin, profile({1, 200}, {16, 200}, {32, 200})), 0);
    plugin.runtime->getFieldsToSerialize();
    Made copy(plugin.plugin->clone());
    std::string const was = metadata(plugin);
    plugin.plugin.reset();
    EQUAL(metadata(copy), was);
    CHECK((tactics(copy) == std::set<int32_t>{1, 2}));
    PluginFieldCollection const* stored = copy.runtime->getFieldsToSerialize();
    EQUAL(stored->nbFields, 9);
    Made again = host::make(library, stored, TensorRTPhase::kRUNTIME);
    EQUAL(metadata(again), was);
}

int main(int count, char** arguments) {
    if (count < 2) return 2;
    library = host::open_library(arguments[1]);
    if (library.fake == nullptr) return 3;
    return check::run(count - 2, arguments + 2);
}
