#include "gateway.h"

constexpr std::chrono::seconds kTtl = 30s;

// Takes a new lease and opens its stream, and lets the loop register all sessions under it.
grpc::Status Gateway::grant() {
  pb::GrantLeaseRequest request;
  request.mutable_ttl()->set_seconds(kTtl.count());
  request.set_owner(owner_);
  pb::GrantLeaseResponse granted;
  if (auto status = call(registry_.leases, &pb::LeaseService::Stub::GrantLease, request, &granted); !status.ok()) {
    return status;
  }
  {
    std::lock_guard lock(mutex_);
    lease_ = granted.lease_id();
    leases_.insert(lease_);
  }
  touch_all();
  pb::SubscribeRequest subscribe;
  subscribe.add_lease_ids(granted.lease_id());
  // This also stops the stream of the lease before.
  follower_ = std::jthread([this, subscribe](std::stop_token stop) {
    registry_.follow(stop, subscribe, [this](const pb::SubscribeResponse& message) { hear(message); });
  });
  return grpc::Status::OK;
}

// Marks the sessions that a message of the lease's stream mentions. The loop then looks them up.
void Gateway::hear(const pb::SubscribeResponse& message) {
  for (const auto& session : message.snapshot().sessions()) {
    touch(session.session_id());
  }
  for (const auto& event : message.events().events()) {
    touch(event.session_id());
  }
  // Sessions that are not in the snapshot may have left during the break.
  if (message.has_synced()) {
    touch_all();
  }
}

// Keeps the lease alive three times per ttl, retries often, and replaces a lease that is gone.
void Gateway::keep(std::stop_token stop) {
  while (!stop.stop_requested()) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, stop, kTtl / 3, [this] { return is_lease_in_doubt_; });
      is_lease_in_doubt_ = false;
    }
    for (int failures = 0; !stop.stop_requested(); failures++) {
      auto status = keep_once();
      if (is_lease_gone(status)) {
        status = grant();
      }
      if (status.ok()) {
        break;
      }
      pause(stop, status, failures);
    }
  }
}

grpc::Status Gateway::keep_once() {
  pb::KeepLeaseAliveRequest request;
  request.set_lease_id(current_lease());
  pb::KeepLeaseAliveResponse kept;
  return call(registry_.leases, &pb::LeaseService::Stub::KeepLeaseAlive, request, &kept, kTtl / 10);
}

uint64_t Gateway::current_lease() {
  std::lock_guard lock(mutex_);
  return lease_;
}
