// Runs one layer as TensorRT does: created from attributes, configured, serialised, created again, attached, enqueued.
//   enqueue library directory   with directory/case.txt of lines
//       int|float|text NAME VALUE       an attribute
//       input TYPE DIMENSIONS FILE      in the node's order; float16, bfloat16 or int32; 3x5x200; raw bytes
//       output TYPE DIMENSIONS FILE     written
//       tactic NUMBER                   0: none was chosen
// Prints the step that refused, if any, and exits with 1. The stand-in launch gets the host's memory, the real one that
// of libcuda.so.1, be it a GPU's driver or a stand-in itself.
#include <fstream>
#include <iostream>
#include <sstream>

#include "host.h"

using namespace nvinfer1;

namespace {

[[noreturn]] void refused(char const* step) {
    printf("%s\n", step);
    exit(1);
}

// Memory of exactly as many bytes as asked for, so that a sanitiser sees a kernel read past them.
class Memory {
  public:
    explicit Memory(bool device) {
        if (!device) return;
        driver_ = dlopen("libcuda.so.1", RTLD_NOW);
        if (driver_ == nullptr) return;  // then enqueue has to say so
        int const gpu = 0;
        void* context = nullptr;
        call<unsigned>("cuInit", 0U);
        call<void**, int>("cuDevicePrimaryCtxRetain", &context, gpu);
        call<void*>("cuCtxSetCurrent", context);
    }
    Memory(Memory const&) = delete;
    ~Memory() {
        for (void* one : all_) driver_ == nullptr ? free(one) : call<void*>("cuMemFree_v2", one);
    }
    void* upload(std::string const& bytes) {
        void* memory = nullptr;
        size_t const size = bytes.empty() ? 1 : bytes.size();
        if (driver_ == nullptr) {
            if (posix_memalign(&memory, 256, size) != 0) refused("out of memory");
            memcpy(memory, bytes.data(), bytes.size());
        } else {
            call<void**, size_t>("cuMemAlloc_v2", &memory, size);
            call<void*, void const*, size_t>("cuMemcpyHtoD_v2", memory, bytes.data(), bytes.size());
        }
        all_.push_back(memory);
        return memory;
    }
    std::string download(void* memory, size_t size) const {
        std::string bytes(size, '\0');
        if (driver_ == nullptr) {
            memcpy(bytes.data(), memory, size);
        } else {
            call<>("cuCtxSynchronize");
            call<void*, void*, size_t>("cuMemcpyDtoH_v2", bytes.data(), memory, size);
        }
        return bytes;
    }

  private:
    template <typename... Arguments>
    void call(char const* name, Arguments... arguments) const {
        auto const function = reinterpret_cast<int (*)(Arguments...)>(dlsym(driver_, name));
        if (function == nullptr || function(arguments...) != 0) refused(name);
    }
    void* driver_ = nullptr;
    std::vector<void*> all_;
};

struct Tensor {
    PluginTensorDesc desc;
    std::string file;
    size_t bytes = 0;
    void* memory = nullptr;
};

Tensor tensor(std::istream& line, std::string const& directory) {
    std::string type, dimensions, file;
    line >> type >> dimensions >> file;
    std::vector<int64_t> shape;
    std::stringstream split(dimensions);
    for (std::string one; std::getline(split, one, 'x');) shape.push_back(std::stoll(one));
    Tensor result;
    bool const words = type == "int32";
    result.desc = host::desc(shape, words ? DataType::kINT32 : type == "bfloat16" ? DataType::kBF16 : DataType::kHALF);
    result.file = directory + "/" + file;
    result.bytes = words ? 4 : 2;
    for (int64_t one : shape) result.bytes *= size_t(one);
    return result;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return 2;
    host::Library const library = host::open_library(arguments[1]);
    std::string const directory = arguments[2];
    Memory memory(library.fake == nullptr);

    host::Fields fields;
    std::vector<Tensor> inputs;
    Tensor output;
    int32_t tactic = 0;
    std::ifstream text(directory + "/case.txt");
    for (std::string all; std::getline(text, all);) {
        std::stringstream line(all);
        std::string word, name, value;
        line >> word;
        if (word == "input") {
            inputs.push_back(tensor(line, directory));
            std::ifstream file(inputs.back().file, std::ios::binary);
            std::string const bytes(std::istreambuf_iterator<char>(file), {});
            if (bytes.size() != inputs.back().bytes) refused("input file");
            inputs.back().memory = memory.upload(bytes);
            continue;
        }
        if (word == "output") {
            output = tensor(line, directory);
            output.memory = memory.upload(std::string(output.bytes, '\xff'));  // NaN
            continue;
        }
        line >> name >> value;
        if (word == "int") fields.integer(name.c_str(), std::stoi(value));
        if (word == "float") fields.real(name.c_str(), std::stof(value));
        if (word == "text") fields.text(name.c_str(), value);
        if (word == "tactic") tactic = std::stoi(name);
    }

    auto const inputs_count = int32_t(inputs.size());
    host::Made built = host::make(library, fields.collection());
    if (!built) refused("createPlugin");
    std::vector<DynamicPluginTensorDesc> tensors;
    std::vector<PluginTensorDesc> descs;
    std::vector<void const*> pointers;
    for (Tensor const& one : inputs) {
        tensors.push_back({one.desc, one.desc.dims, one.desc.dims, one.desc.dims});
        descs.push_back(one.desc);
        pointers.push_back(one.memory);
    }
    tensors.push_back({output.desc, output.desc.dims, output.desc.dims, output.desc.dims});
    for (int32_t i = 0; i < inputs_count + 1; ++i) {
        if (!built.build->supportsFormatCombination(i, tensors.data(), inputs_count, 1))
            refused("supportsFormatCombination");
    }
    if (built.build->configurePlugin(tensors.data(), inputs_count, &tensors.back(), 1)) refused("configurePlugin");
    size_t const bytes = built.build->getWorkspaceSize(tensors.data(), inputs_count, &tensors.back(), 1);
    std::vector<int32_t> tactics(size_t(built.build->getNbTactics()));
    if (built.build->getValidTactics(tactics.data(), int32_t(tactics.size()))) refused("getValidTactics");

    host::Made loaded = host::make(library, built.runtime->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
    if (!loaded) refused("createPlugin at run time");
    if (loaded.runtime->setTactic(tactic)) refused("setTactic");
    host::Made attached(loaded.runtime->attachToContext(nullptr));
    if (!attached) refused("attachToContext");
    if (attached.runtime->onShapeChange(descs.data(), inputs_count, &output.desc, 1)) refused("onShapeChange");
    void* const workspace = memory.upload(std::string(bytes, '\xa5'));
    if (attached.runtime->enqueue(descs.data(), &output.desc, pointers.data(), &output.memory, workspace, nullptr)) {
        refused("enqueue");
    }

    std::ofstream(output.file, std::ios::binary) << memory.download(output.memory, output.bytes);
    printf("tactics");
    for (int32_t one : tactics) printf(" %d", one);
    printf("\n");
}
