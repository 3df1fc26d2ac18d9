// What newcomers include, in the order in which it hurts: each header would bring a printf or an assert of its own.
#include <assert.h>
#include <cassert>
#include <cstdio>
#include <iostream>
#include <memory>
#include <stdio.h>

extern "C" __global__ void say(int n) {
  printf("one %d\n", n);
  std::printf("two %s\n", "words");
}

extern "C" __global__ void check(const int* x) {
  assert(threadIdx.x != 3 || x[0] == 7);
}
