module entente.dev/integration/tools/istio-api

go 1.26.0

require istio.io/api v1.30.3
