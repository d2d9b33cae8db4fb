/* RLtools, whose sizes are known when it is compiled: steps of Adam of an MLP of HIDDEN_LAYERS equal hidden layers. */
#include <rl_tools/operations/cpu.h>

#include <rl_tools/nn/optimizers/adam/instance/operations_generic.h>

#include <rl_tools/nn/layers/dense/operations_cpu.h>
#include <rl_tools/nn/loss_functions/categorical_cross_entropy/operations_generic.h>
#include <rl_tools/nn/operations_cpu.h>
#include <rl_tools/nn_models/mlp/operations_generic.h>

#include <rl_tools/nn/optimizers/adam/operations_generic.h>

#include <cstdint>
#include <cstring>

namespace rlt = rl_tools;
namespace loss = rlt::nn::loss_functions::categorical_cross_entropy;
using rlt::nn::activation_functions::ActivationFunction;

using Device = rlt::devices::DefaultCPU;
using Index = Device::index_t;
using Types = rlt::numeric_types::Policy<float>;
using Config = rlt::nn_models::mlp::Configuration<Types, Index, OUTPUTS, HIDDEN_LAYERS + 1, HIDDEN,
                                                  ActivationFunction::RELU, ActivationFunction::IDENTITY>;
using Capability = rlt::nn::capability::Gradient<rlt::nn::parameters::Adam, false>;
using Model = rlt::nn_models::mlp::NeuralNetwork<Config, Capability, rlt::tensor::Shape<Index, BATCH, INPUTS>>;
using Defaults = rlt::nn::optimizers::adam::DEFAULT_PARAMETERS_PYTORCH<Types>;
using Adam = rlt::nn::optimizers::Adam<rlt::nn::optimizers::adam::Specification<Types, Index, Defaults, false>>;
template <typename T, Index COLUMNS, bool DYNAMIC = false>
using Rows = rlt::Matrix<rlt::matrix::Specification<T, Index, BATCH, COLUMNS, DYNAMIC>>;

static Device device;
static Device::SPEC::RANDOM::ENGINE<> rng;
static Model model;
static Model::Buffer<false> buffer;
static Adam adam;
static Rows<float, INPUTS> input;
static Rows<Index, 1> targets;
static Rows<float, OUTPUTS, true> gradient; /* the loss takes it by value */

extern "C" void begin()
{
    rlt::init(device, rng);
    rlt::malloc(device, gradient);
    rlt::init_weights(device, model, rng);
    rlt::reset_optimizer_state(device, adam, model);
}

/* Takes a step on each of some batches of the rows of x, in an order; returns the mean of their losses. */
extern "C" double epoch(const float *x, const int64_t *labels, const int64_t *order, int64_t batches)
{
    double sum = 0;
    for (int64_t batch = 0; batch < batches; ++batch) {
        for (Index i = 0; i < BATCH; ++i) {
            const int64_t row = order[batch * BATCH + i];
            std::memcpy(&rlt::get(input, i, 0), x + row * INPUTS, INPUTS * sizeof(float));
            rlt::set(targets, i, 0, (Index)labels[row]);
        }
        rlt::zero_gradient(device, model);
        rlt::forward(device, model, input, buffer, rng);
        sum += loss::evaluate(device, model.output_layer.output, targets);
        loss::gradient(device, model.output_layer.output, targets, gradient);
        rlt::backward(device, model, input, gradient, buffer);
        rlt::step(device, adam, model);
    }
    return sum / batches;
}
