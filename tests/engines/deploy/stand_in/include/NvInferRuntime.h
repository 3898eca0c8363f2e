// As much of TensorRT 10's API as example/denoise.cpp calls, without TensorRT. A plan is text, a line for each tensor:
// "input|output name type=DataType's number min=1x2 opt=2x2"; a step adds up all that it was fed.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 3

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT, kHALF, kINT8, kINT32, kBOOL, kUINT8, kFP8, kBF16, kINT64, kINT4 };
enum class TensorIOMode : int32_t { kNONE, kINPUT, kOUTPUT };
enum class OptProfileSelector : int32_t { kMIN, kOPT, kMAX };

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};

struct ILogger {
    enum class Severity : int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
    virtual void log(Severity, char const*) noexcept = 0;
    virtual ~ILogger() = default;
};

struct Tensor {
    TensorIOMode mode;
    std::string name;
    DataType type;
    Dims least, best;
};

inline Dims dims(std::string const& text) {
    Dims found{};
    std::istringstream words(text);
    for (std::string word; std::getline(words, word, 'x');) found.d[found.nbDims++] = std::stoll(word);
    return found;
}

inline int64_t elements(Dims const& shape) {
    int64_t count = 1;
    for (int32_t i = 0; i < shape.nbDims; ++i) count *= shape.d[i];
    return count;
}

class IExecutionContext {
  public:
    explicit IExecutionContext(std::vector<Tensor> const& tensors) : tensors_(tensors) {}
    bool setInputShape(char const* name, Dims const& shape) { return shapes_[name] = shape, true; }
    Dims getTensorShape(char const* name) const {
        for (Tensor const& t : tensors_)
            if (t.name == name) return t.mode == TensorIOMode::kINPUT ? shapes_.at(name) : t.best;
        return {-1, {}};
    }
    bool setTensorAddress(char const* name, void* address) { return addresses_[name] = address, true; }
    bool enqueueV3(cudaStream_t) {
        double sum = 0;
        for (Tensor const& t : tensors_) {
            if (addresses_.count(t.name) == 0) return false;
            if (t.mode != TensorIOMode::kINPUT) continue;
            for (int64_t i = 0; i < elements(shapes_.at(t.name)); ++i) {
                if (t.type == DataType::kINT64) sum += double(static_cast<int64_t*>(addresses_.at(t.name))[i]);
                if (t.type == DataType::kINT32) sum += double(static_cast<int32_t*>(addresses_.at(t.name))[i]);
            }
        }
        if (!said_) std::printf("integers add up to %.0f\n", sum);
        return said_ = true;
    }

  private:
    std::vector<Tensor> tensors_;
    std::map<std::string, Dims> shapes_;
    std::map<std::string, void*> addresses_;
    bool said_ = false;
};

class ICudaEngine {
  public:
    explicit ICudaEngine(std::vector<Tensor> tensors) : tensors_(std::move(tensors)) {}
    IExecutionContext* createExecutionContext() { return new IExecutionContext(tensors_); }
    int32_t getNbIOTensors() const { return int32_t(tensors_.size()); }
    char const* getIOTensorName(int32_t i) const { return tensors_[size_t(i)].name.c_str(); }
    TensorIOMode getTensorIOMode(char const* name) const { return find(name).mode; }
    DataType getTensorDataType(char const* name) const { return find(name).type; }
    Dims getProfileShape(char const* name, int32_t, OptProfileSelector which) const {
        return which == OptProfileSelector::kMIN ? find(name).least : find(name).best;
    }

  private:
    Tensor const& find(char const* name) const {
        return *std::find_if(tensors_.begin(), tensors_.end(), [&](Tensor const& t) { return t.name == name; });
    }
    std::vector<Tensor> tensors_;
};

class IRuntime {
  public:
    explicit IRuntime(ILogger& logger) : logger_(logger) {}
    ICudaEngine* deserializeCudaEngine(void const* plan, size_t size) {
        std::istringstream lines(std::string(static_cast<char const*>(plan), size));
        std::vector<Tensor> tensors;
        for (std::string mode, name, type, least, best; lines >> mode >> name >> type >> least >> best;)
            tensors.push_back({mode == "input" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT, name,
                               DataType(std::stoi(type.substr(5))), dims(least.substr(4)), dims(best.substr(4))});
        if (!tensors.empty()) return new ICudaEngine(tensors);
        logger_.log(ILogger::Severity::kERROR, "no plan of this version");
        return nullptr;
    }

  private:
    ILogger& logger_;
};

struct IPluginRegistry {
    void* loadLibrary(char const* path) { return std::ifstream(path) ? this : nullptr; }
};

inline IRuntime* createInferRuntime(ILogger& logger) { return new IRuntime(logger); }

}  // namespace nvinfer1

inline nvinfer1::IPluginRegistry* getPluginRegistry() {
    static nvinfer1::IPluginRegistry registry;
    return &registry;
}
