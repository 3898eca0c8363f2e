// One step of the denoiser through TensorRT's C++ API, timed: denoise PLAN PLUGIN [CALLS]
//
//     ./denoise ../engines/transformer.svdq-int4.sm87.trt10.3.plan ../plugin/libsvdq_plugin.so
//
// Inputs are random numbers: the point is how a plan and the plugin are loaded, how buffers are bound and what a step
// takes. TensorRT 8.5 and later; from 8.6 on the registry loads the plugin, before that the library registers itself.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

[[noreturn]] void fail(std::string const& sentence) {
    std::fprintf(stderr, "error: %s\n", sentence.c_str());
    std::exit(2);
}

void check(cudaError_t status, char const* call) {
    if (status != cudaSuccess) fail(std::string(call) + ": " + cudaGetErrorString(status) + ".");
}

struct Logger : nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", message);
    }
};

void loadPlugin(char const* path) {
#if NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR >= 806
    if (getPluginRegistry()->loadLibrary(path) == nullptr) fail(std::string(path) + " cannot be loaded: run build.sh first.");
#else
    if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) == nullptr) fail(std::string(dlerror()) + ": run build.sh first.");
#endif
}

std::vector<char> read(char const* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(std::string(path) + " cannot be read: run build.sh first.");
    return {std::istreambuf_iterator<char>(file), {}};
}

size_t bytesOf(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
        case nvinfer1::DataType::kINT32: return 4;
        case nvinfer1::DataType::kHALF: return 2;
#if NV_TENSORRT_MAJOR >= 10
        case nvinfer1::DataType::kBF16: return 2;
        case nvinfer1::DataType::kINT64: return 8;
#endif
        default: return 1;
    }
}

// Small normal numbers in the tensor's own type; ones in integers, which are ids or the mask of a text.
std::vector<char> random(nvinfer1::DataType type, size_t count) {
    std::vector<char> bytes(count * bytesOf(type));
    std::mt19937 generator(0);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < count; ++i) {
        if (type == nvinfer1::DataType::kFLOAT) reinterpret_cast<float*>(bytes.data())[i] = normal(generator);
        // The sign bit, and an exponent between 2^-7 and 1: any half in that range will do.
        if (type == nvinfer1::DataType::kHALF)
            reinterpret_cast<uint16_t*>(bytes.data())[i] = static_cast<uint16_t>((generator() & 0x9fff) | 0x2000);
        if (type == nvinfer1::DataType::kINT32) reinterpret_cast<int32_t*>(bytes.data())[i] = 1;
#if NV_TENSORRT_MAJOR >= 10
        if (type == nvinfer1::DataType::kINT64) reinterpret_cast<int64_t*>(bytes.data())[i] = 1;
#endif
    }
    return bytes;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) fail("usage: denoise PLAN PLUGIN [CALLS].");
    int const calls = count > 3 ? std::atoi(arguments[3]) : 20;
    if (calls < 1) fail("CALLS must be 1 or more.");
    Logger logger;
    loadPlugin(arguments[2]);
    std::vector<char> const plan = read(arguments[1]);
    std::unique_ptr<nvinfer1::IRuntime> const runtime{nvinfer1::createInferRuntime(logger)};
    if (!runtime) fail("TensorRT cannot start: is there an NVIDIA GPU?");
    std::unique_ptr<nvinfer1::ICudaEngine> const engine{runtime->deserializeCudaEngine(plan.data(), plan.size())};
    if (!engine) fail(std::string(arguments[1]) + " is not for this device and TensorRT: run build.sh again.");
    std::unique_ptr<nvinfer1::IExecutionContext> const context{engine->createExecutionContext()};
    if (!context) fail("There is no memory for the activations: close other programs.");

    std::vector<void*> buffers;
    for (int i = 0; i < engine->getNbIOTensors(); ++i) {
        char const* const name = engine->getIOTensorName(i);
        bool const input = engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        // Of build.sh's profile, what run.py calls the step with: with both halves of the guidance, where it joins them.
        if (input) context->setInputShape(name, engine->getProfileShape(name, 0, nvinfer1::OptProfileSelector::kOPT));
        nvinfer1::Dims const shape = context->getTensorShape(name);  // of an output: known once the inputs before it are
        size_t elements = 1;
        for (int d = 0; d < shape.nbDims; ++d) elements *= static_cast<size_t>(std::max<int64_t>(shape.d[d], 0));
        std::vector<char> const values = random(engine->getTensorDataType(name), elements);
        check(cudaMalloc(&buffers.emplace_back(), std::max<size_t>(values.size(), 1)), "cudaMalloc");
        if (input) check(cudaMemcpy(buffers.back(), values.data(), values.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
        context->setTensorAddress(name, buffers.back());
        std::printf("%s %s: %zu elements\n", input ? "input " : "output", name, elements);
    }

    cudaStream_t stream;
    cudaEvent_t begin, end;
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    check(cudaEventCreate(&begin), "cudaEventCreate");
    check(cudaEventCreate(&end), "cudaEventCreate");
    std::vector<float> milliseconds;
    for (int i = 0; i <= calls; ++i) {  // the first call warms up
        check(cudaEventRecord(begin, stream), "cudaEventRecord");
        if (!context->enqueueV3(stream)) fail("TensorRT could not run the step; its reason is above.");
        check(cudaEventRecord(end, stream), "cudaEventRecord");
        check(cudaEventSynchronize(end), "a step");
        check(cudaEventElapsedTime(&milliseconds.emplace_back(), begin, end), "cudaEventElapsedTime");
    }
    std::sort(milliseconds.begin() + 1, milliseconds.end());
    std::printf("one step: %.2f ms (median of %d)\n", milliseconds[1 + (calls - 1) / 2], calls);
    for (void* buffer : buffers) cudaFree(buffer);
    return 0;
}
