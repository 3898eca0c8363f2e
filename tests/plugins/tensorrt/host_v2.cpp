// Calls every method of the TensorRT 8 plugin. The library is linked with fake_launch.cpp.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "fake_launch.h"
#include "symbolic.h"

using namespace nvinfer1;

namespace {

IPluginCreator* creator;
FakeLaunch* fake;

struct Destroy {
    void operator()(IPluginV2DynamicExt* plugin) const { plugin->destroy(); }
};
using Plugin = std::unique_ptr<IPluginV2DynamicExt, Destroy>;

struct Fields {
    std::deque<int32_t> integers;
    std::deque<std::string> texts;
    std::vector<PluginField> fields;
    PluginFieldCollection collection{};

    Fields& integer(char const* name, int32_t value) {
        integers.push_back(value);
        fields.emplace_back(name, &integers.back(), PluginFieldType::kINT32, 1);
        return *this;
    }
    Fields& text(char const* name, std::string const& value) {
        texts.push_back(value);
        fields.emplace_back(name, texts.back().data(), PluginFieldType::kCHAR, int32_t(value.size()));
        return *this;
    }
    Plugin make() {
        collection = {int32_t(fields.size()), fields.data()};
        return Plugin(static_cast<IPluginV2DynamicExt*>(creator->createPlugin("node", &collection)));
    }
};

Plugin layer(int32_t rank = 32) {
    Plugin plugin = Fields()
                        .integer("n", 100)
                        .integer("k", 200)
                        .integer("rank", rank)
                        .integer("layout_version", 1)
                        .text("activation", "silu")
                        .make();
    CHECK(plugin != nullptr);
    return plugin;
}

PluginTensorDesc desc(std::vector<int32_t> const& shape, DataType type = DataType::kHALF) {
    PluginTensorDesc result{};
    result.dims.nbDims = int32_t(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) result.dims.d[i] = shape[i];
    result.type = type;
    result.format = TensorFormat::kLINEAR;
    return result;
}

// The inputs of layer(rank), and then its output.
std::vector<PluginTensorDesc> descs(std::vector<int32_t> x, int32_t rank = 32) {
    std::vector<PluginTensorDesc> result = {desc(x), desc({2, 4, 512}, DataType::kINT32), desc({4, 128}), desc({256})};
    if (rank) {
        result.push_back(desc({4, rank / 16, 1024}));
        result.push_back(desc({2, rank / 16, 1024}));
    }
    result.push_back(desc({128}));
    x.back() = 100;
    result.push_back(desc(x));
    return result;
}

int32_t enqueue(Plugin& plugin, std::vector<PluginTensorDesc> const& all, void const* const* pointers, void* y) {
    return plugin->enqueue(all.data(), &all.back(), pointers, &y, nullptr, nullptr);
}

std::string serialised(Plugin const& plugin) {
    std::string bytes(plugin->getSerializationSize(), '\0');
    plugin->serialize(bytes.data());
    return bytes;
}

// From a buffer of exactly its size, so that the sanitiser sees a byte read too many.
Plugin deserialised(std::string const& bytes) {
    std::unique_ptr<char[]> const exact(new char[bytes.size()]);
    memcpy(exact.get(), bytes.data(), bytes.size());
    return Plugin(static_cast<IPluginV2DynamicExt*>(creator->deserializePlugin("node", exact.get(), bytes.size())));
}

}  // namespace

CASE(the_creator_names_itself_and_all_attributes) {
    EQUAL(creator->getPluginName(), "SvdqLinear");
    EQUAL(creator->getPluginVersion(), "1");
    EQUAL(creator->getPluginNamespace(), "");
    std::string all;
    PluginFieldCollection const* names = creator->getFieldNames();
    for (int32_t i = 0; i < names->nbFields; ++i) all += std::string(names->fields[i].name) + " ";
    EQUAL(all.c_str(), "n k rank group_size act_bits act_signed layout_version act_shift activation ");
}

CASE(bad_nodes_are_refused_with_a_reason) {
    REFUSED(Fields().integer("n", 100).integer("layout_version", 1).make() == nullptr,
            "SvdqLinear node: attribute k is missing");
    REFUSED(Fields().integer("n", 100).integer("k", 200).integer("layout_version", 2).make() == nullptr,
            "packed in layout 2");
    REFUSED(
        Fields().integer("n", 100).integer("k", 200).integer("layout_version", 1).integer("rank", 3).make() == nullptr,
        "fake bad layer");
    REFUSED(Fields().integer("n", 100).integer("alpha", 1).make() == nullptr, "there is no attribute alpha");
    REFUSED(creator->createPlugin(nullptr, nullptr) == nullptr, "attribute n is missing");
}

CASE(a_plugin_describes_itself) {
    Plugin plugin = layer();
    EQUAL(plugin->getPluginType(), "SvdqLinear");
    EQUAL(plugin->getPluginVersion(), "1");
    EQUAL(plugin->getNbOutputs(), 1);
    DataType const half = DataType::kHALF;
    CHECK(plugin->getOutputDataType(0, &half, 1) == DataType::kHALF);
    plugin->setPluginNamespace("somewhere");
    EQUAL(plugin->getPluginNamespace(), "somewhere");
    Plugin copy(static_cast<IPluginV2DynamicExt*>(plugin->clone()));
    EQUAL(copy->getPluginNamespace(), "somewhere");
    plugin->setPluginNamespace(std::string(5000, 'x').c_str());
    EQUAL(strlen(plugin->getPluginNamespace()), size_t(1023));
    plugin->setPluginNamespace(nullptr);
    EQUAL(plugin->getPluginNamespace(), "");
    CHECK(serialised(copy) == serialised(plugin));
}

CASE(the_output_has_the_leading_dimensions_of_x_and_n_channels) {
    for (int32_t rank : {0, 32}) {
        Plugin plugin = layer(rank);
        int32_t const count = rank ? 7 : 5;
        symbolic::Builder builder;
        std::vector<DimsExprs> inputs(size_t(count), builder.dims(std::vector<int32_t>{1}));
        inputs[0] = builder.dims(std::vector<int32_t>{-1, 16, 200});
        DimsExprs y = plugin->getOutputDimensions(0, inputs.data(), count, builder);
        EQUAL(y.nbDims, 3);
        CHECK(y.d[0] == inputs[0].d[0] && y.d[1] == inputs[0].d[1]);
        EQUAL(y.d[2]->getConstantValue(), 100);
        REFUSED(plugin->getOutputDimensions(0, inputs.data(), 4, builder).nbDims == -1, "it has 4 inputs");
        inputs[0].nbDims = 0;
        REFUSED(plugin->getOutputDimensions(0, inputs.data(), count, builder).nbDims == -1, "x of 0 dimensions");
    }
}

CASE(only_linear_float16_and_int32_words_are_supported) {
    for (int32_t rank : {0, 32}) {
        Plugin plugin = layer(rank);
        int32_t const count = rank ? 7 : 5;
        for (int32_t position = 0; position < count + 1; ++position) {
            for (DataType type :
                 {DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kINT32, DataType::kBOOL}) {
                for (TensorFormat format : {TensorFormat::kLINEAR, TensorFormat::kCHW2, TensorFormat::kCHW32}) {
                    std::vector<PluginTensorDesc> all = descs({3, 200}, rank);
                    all[size_t(position)].type = type;
                    all[size_t(position)].format = format;
                    bool const good =
                        format == TensorFormat::kLINEAR && type == (position == 1 ? DataType::kINT32 : DataType::kHALF);
                    EQUAL(plugin->supportsFormatCombination(position, all.data(), count, 1), good);
                }
            }
        }
        std::vector<PluginTensorDesc> const all = descs({3, 200}, rank);
        CHECK(!plugin->supportsFormatCombination(-1, all.data(), count, 1));
        CHECK(!plugin->supportsFormatCombination(count + 1, all.data(), count, 1));
        CHECK(!plugin->supportsFormatCombination(0, all.data(), count - 1, 1));
    }
}

CASE(the_workspace_is_for_the_given_shape) {
    Plugin plugin = layer();
    std::vector<PluginTensorDesc> const all = descs({3, 5, 200});
    SvdqLayer const expected{100, 200, 32, 64, 4, 1, SVDQ_SILU, SVDQ_FLOAT16, 0.0F};
    EQUAL(plugin->getWorkspaceSize(all.data(), 7, &all.back(), 1), fake_workspace(expected, 15));
    EQUAL(plugin->getWorkspaceSize(nullptr, 0, nullptr, 1), size_t(0));
}

CASE(wrong_shapes_are_said_when_configured_and_refused_when_enqueued) {
    Plugin plugin = layer();
    char memory[1];
    void const* const pointers[7] = {memory};
    auto configure = [&](std::vector<PluginTensorDesc> const& all) {
        std::vector<DynamicPluginTensorDesc> tensors;
        for (PluginTensorDesc const& one : all) tensors.push_back({one, one.dims, one.dims});
        return check::stderr_of(
            [&] { plugin->configurePlugin(tensors.data(), int32_t(all.size()) - 1, &tensors.back(), 1); });
    };
    EQUAL(configure(descs({3, 200})).c_str(), "");
    CHECK(configure(descs({3, 200}, 0)).find("it has 5 inputs") != std::string::npos);
    for (size_t i = 0; i < 8; ++i) {
        std::vector<PluginTensorDesc> wrong = descs({3, 200});
        wrong[i].dims.d[wrong[i].dims.nbDims - 1] += 1;
        if (i < 7) CHECK(configure(wrong).find("must be") != std::string::npos);
        REFUSED(enqueue(plugin, wrong, pointers, memory) != 0, "must be");
    }
}

CASE(enqueue_passes_everything_on) {
    for (int32_t rank : {0, 32}) {
        Plugin plugin = layer(rank);
        char memory[16];
        void const* pointers[7];
        for (int i = 0; i < 7; ++i) pointers[i] = memory + i;
        void *y = nullptr, *workspace = memory + 8;
        auto const stream = reinterpret_cast<cudaStream_t>(memory + 9);
        std::vector<PluginTensorDesc> const all = descs({2, 50, 200}, rank);
        EQUAL(plugin->enqueue(all.data(), &all.back(), pointers, &y, workspace, stream), 0);
        SvdqLayer const expected{100, 200, rank, 64, 4, 1, SVDQ_SILU, SVDQ_FLOAT16, 0.0F};
        CHECK(memcmp(&fake->layer, &expected, sizeof expected) == 0);
        CHECK(fake->x == pointers[0] && fake->constants.qweight == pointers[1] &&
              fake->constants.wscale == pointers[2]);
        CHECK(fake->constants.inv_smooth == pointers[3] && fake->constants.bias == pointers[rank ? 6 : 4]);
        CHECK(fake->constants.down == (rank ? pointers[4] : nullptr) &&
              fake->constants.up == (rank ? pointers[5] : nullptr));
        CHECK(fake->y == y && fake->workspace == workspace && fake->stream == (void*)stream);
        EQUAL(fake->m, 100);
        EQUAL(fake->tile, 0);
        EQUAL(fake->workspace_bytes, fake_workspace(expected, 100));

        int const before = fake->enqueued;
        EQUAL(enqueue(plugin, descs({0, 200}, rank), pointers, y), 0);
        EQUAL(fake->enqueued, before);
        fake->enqueue_status = SVDQ_NO_DRIVER;
        REFUSED(enqueue(plugin, all, pointers, y) == SVDQ_NO_DRIVER, "enqueue of 100 rows: fake no driver");
        fake->enqueue_status = SVDQ_OK;
    }
}

CASE(initialising_loads_the_kernels_and_survives_failure) {
    Plugin plugin = layer();
    fake->prepare_status = SVDQ_NO_DRIVER;
    EQUAL(plugin->initialize(), 0);
    EQUAL(fake->prepared, 1);
    plugin->terminate();
    fake->prepare_status = SVDQ_OK;
}

CASE(what_is_serialised_makes_an_equal_plugin) {
    for (int32_t rank : {0, 32}) {
        Plugin plugin = layer(rank);
        plugin->setPluginNamespace("");
        Plugin again = deserialised(serialised(plugin));
        CHECK(again != nullptr);
        CHECK(serialised(again) == serialised(plugin));
        char memory[1];
        void const* const pointers[7] = {memory};
        EQUAL(enqueue(again, descs({3, 200}, rank), pointers, nullptr), 0);
        EQUAL(fake->layer.rank, rank);
        EQUAL(fake->layer.activation, int32_t(SVDQ_SILU));
    }
}

CASE(bytes_of_another_plugin_are_refused) {
    std::string const good = serialised(layer());
    REFUSED(deserialised("") == nullptr, "the engine holds 0 bytes of another plugin");
    REFUSED(deserialised(good.substr(1)) == nullptr, "bytes of another plugin");
    REFUSED(deserialised(good + "x") == nullptr, "bytes of another plugin");
    REFUSED(deserialised("X" + good.substr(1)) == nullptr, "bytes of another plugin");
    std::string endless = good;
    endless.replace(good.rfind("silu"), 12, 12, 's');  // no NUL in the activation, nor in all that is stored behind it
    REFUSED(deserialised(endless) == nullptr, "activation is \"sssssssssss\"");
    REFUSED(creator->deserializePlugin("node", nullptr, good.size()) == nullptr, "bytes of another plugin");
}

CASE(ten_thousand_mutated_engines_are_accepted_or_refused) {
    std::string const good = serialised(layer());
    std::mt19937 generator(1);
    int accepted = 0;
    check::stderr_of([&] {
        for (int round = 0; round < 10000; ++round) {
            std::string bytes = good;
            for (int times = int(generator() % 3); times >= 0; --times) {
                size_t const at = generator() % bytes.size();
                if (generator() % 2)
                    bytes[at] = char(bytes[at] ^ (1 << generator() % 8));
                else
                    bytes[at] = char(generator());
            }
            if (generator() % 20 == 0) bytes.resize(generator() % (2 * good.size()));
            Plugin plugin = deserialised(bytes);
            if (plugin == nullptr) continue;
            ++accepted;
            Plugin again = deserialised(serialised(plugin));
            CHECK(again != nullptr && serialised(again) == serialised(plugin));
        }
    });
    CHECK(accepted > 500 && accepted < 9500);
}

int main(int count, char** arguments) {
    if (count < 2) return 2;
    void* const handle = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return printf("%s\n", dlerror()), 3;
    auto const creators = reinterpret_cast<IPluginCreator* const* (*)(int32_t&)>(dlsym(handle, "getPluginCreators"));
    auto const set_logger = reinterpret_cast<void (*)(void*)>(dlsym(handle, "setLoggerFinder"));
    fake = reinterpret_cast<FakeLaunch* (*)()>(dlsym(handle, "fake_launch"))();
    int32_t number = 0;
    creator = creators(number)[0];
    if (number != 1 || set_logger == nullptr) return 3;
    set_logger(nullptr);
    return check::run(count - 2, arguments + 2);
}
