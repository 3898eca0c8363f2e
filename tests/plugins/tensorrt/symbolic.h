// Dimension expressions, as TensorRT hands them to a plugin while the network is built.
#pragma once

#include <NvInferRuntime.h>

#include <deque>

namespace symbolic {

using namespace nvinfer1;
using Value = decltype(std::declval<IDimensionExpr>().getConstantValue());  // 32 bits in TensorRT 8

struct Dimension : apiv::VDimensionExpr {
    Value value;
    bool constant;
    Dimension(Value v, bool c) : value(v), constant(c) {}
    bool isConstant() const noexcept override { return constant; }
    Value getConstantValue() const noexcept override { return value; }
#if NV_TENSORRT_MAJOR >= 10
    bool isSizeTensor() const override { return false; }
#endif
};

struct Expression : IDimensionExpr {
    Dimension dimension;
    Expression(Value value, bool constant) : dimension(value, constant) { mImpl = &dimension; }
    ~Expression() noexcept override = default;
};

// Owns the expressions that it makes.
struct Builder : IExprBuilder {
    struct Made : apiv::VExprBuilder {
        std::deque<Expression> expressions;
        IDimensionExpr const* constant(Value value) noexcept override { return &expressions.emplace_back(value, true); }
        IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&,
                                        IDimensionExpr const&) noexcept override {
            return nullptr;
        }
#if NV_TENSORRT_MAJOR >= 10
        IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
            return nullptr;
        }
#endif
    } made;

    Builder() { mImpl = &made; }
    ~Builder() noexcept override = default;

    IDimensionExpr const* known(Value value) { return made.constant(value); }
    IDimensionExpr const* unknown() { return &made.expressions.emplace_back(-77, false); }

    // Negative values become dimensions that are not known yet.
    template <typename Values>
    DimsExprs dims(Values const& values) {
        DimsExprs result{};
        for (auto value : values) result.d[result.nbDims++] = value < 0 ? unknown() : known(Value(value));
        return result;
    }
};

}  // namespace symbolic
