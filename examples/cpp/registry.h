#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include <grpcpp/grpcpp.h>

#include "sessiond/v1/lease_service.grpc.pb.h"
#include "sessiond/v1/session_service.grpc.pb.h"

namespace pb = sessiond::v1;
using namespace std::chrono_literals;

constexpr std::chrono::milliseconds kTimeout = 10s;

// Makes calls to sessiond.
struct Registry {
  using Handler = std::function<void(const pb::SubscribeResponse&)>;

  explicit Registry(const std::string& address);

  // Subscribes until stopped, and passes every message to `handle`. It resumes after each break, and starts over with a
  // snapshot if the break was within one. It returns an error only if a retry would fail again.
  grpc::Status follow(std::stop_token stop, pb::SubscribeRequest request, const Handler& handle);

  std::unique_ptr<pb::SessionService::Stub> sessions;
  std::unique_ptr<pb::LeaseService::Stub> leases;

 private:
  // Reads one stream until it ends, or until it is silent for three heartbeats.
  grpc::Status read(std::stop_token stop, const pb::SubscribeRequest& request, const Handler& handle);
};

// Makes a unary call, which waits until the registry is there.
template <typename Stub, typename Request, typename Response>
grpc::Status call(const std::unique_ptr<Stub>& stub,
                  grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*), const Request& request,
                  Response* response, std::chrono::milliseconds timeout = kTimeout) {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  return ((*stub).*method)(&context, request, response);
}

// Waits before a retry, after this many failures before it: as long as the registry asks, and at least a random time.
// Clients that were cut off together do not come back together then.
void pause(const std::stop_token& stop, const grpc::Status& status, int failures);

bool is_lease_gone(const grpc::Status& status);
