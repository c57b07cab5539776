// A rollout with two AOTInductor packages and no Python: the program of a chunk, and the program that decides.
// rollout MODEL.aoti.pt2 MODEL.decide.aoti.pt2 TENSORS.pt CHUNKS OUT.pt
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

using torch::indexing::Slice;

// Tensors of a TorchScript container: noise [B, C, frames, h, w], cameras [B, frames, 4, 4], the first chunk.
static at::Tensor tensor(const torch::jit::Module& held, const char* name) { return held.attr(name).toTensor(); }

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  torch::NoGradGuard no_grad;
  torch::inductor::AOTIModelPackageLoader model(argv[1]), decide(argv[2]);
  const auto held = torch::jit::load(argv[3]);
  const auto noise = tensor(held, "noise"), cameras = tensor(held, "cameras");
  auto history = tensor(held, "first");
  const int64_t chunk = history.size(2);
  const auto drift = tensor(held, "drift");
  auto novel = torch::tensor(true);
  for (int64_t number = 1; number < std::stoll(argv[4]); ++number) {
    const int64_t begin = number * chunk, end = begin + chunk;
    const auto seen = cameras.index({Slice(), Slice(0, end)}).contiguous();
    // context_frames, reuse, novel, overlap
    const auto decision = decide.run({seen[0].to(torch::kDouble).contiguous(), history, novel});
    const auto reuse = decision[1];
    novel = decision[2];
    // the module's arguments, then context_frames, reuse_step_1, largest_drift, reuse_step_2
    const auto latents = noise.index({Slice(), Slice(), Slice(begin, end)}).contiguous();
    const auto results = model.run({latents, history, seen, decision[0], reuse, drift, reuse});
    history = torch::cat({history, results[0]}, 2);
    std::cout << "chunk " << number << ": " << decision[0].size(0) << " context frames, steps reused "
              << results[1].item<bool>() << results[2].item<bool>() << "\n";
  }
  const auto bytes = torch::jit::pickle_save(history);
  std::ofstream(argv[5], std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
