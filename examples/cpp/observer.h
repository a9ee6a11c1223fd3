#pragma once

#include "registry.h"

// Mirrors which sessions exist and which lease each is under, and prints every change.
grpc::Status observe(Registry& registry);
