{{- define "entente.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "entente.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "entente.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "entente.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "entente.instance" -}}
{{- default .Release.Name .Values.instance }}
{{- end }}

{{/* The labels of the agent's registrations. The class is among them: with `filterByClassName` spire-controller-manager reads
nothing else. A class that cannot be a label is filtered by no one. */}}
{{- define "entente.registrationLabels" -}}
{{ include "entente.labels" . }}
{{- $labels := dict }}
{{- if regexMatch "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" .Values.spire.className }}
{{- $labels = dict "spire.spiffe.io/class-name" .Values.spire.className }}
{{- end }}
{{- with merge (dict) .Values.spire.register.labels $labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What pods are selected by. */}}
{{- define "entente.selectorLabels" -}}
app.kubernetes.io/name: entente
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "entente.labels" -}}
{{ include "entente.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "entente.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "entente.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name: name the ServiceAccount that serviceAccount.create=false leaves to you" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "entente.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* Our trust domain in a SPIFFE ID; where it is not given, spire-controller-manager puts it in. */}}
{{- define "entente.trustDomain" -}}
{{- default "{{ .TrustDomain }}" .Values.trustDomain }}
{{- end }}

{{/* Whether the SPIRE Server API is reached over TCP, with an admin SVID. */}}
{{- define "entente.overTcp" -}}
{{- if not .Values.spire.server.hostPath }}true{{ end }}
{{- end }}

{{/* Whether there is a Service for peers. */}}
{{- define "entente.peerService" -}}
{{- if or .Values.peer.service.enabled .Values.peer.gateway.enabled }}true{{ end }}
{{- end }}

{{/* Where a port is served: of the list's first, the address; the second is the port. */}}
{{- define "entente.listen" -}}
{{- $address := (index . 0).Values.listenAddress }}
{{- printf (ternary "[%s]:%v" "%s:%v" (contains ":" $address)) $address (index . 1) | quote }}
{{- end }}

{{/* The agent's own settings: name and value. Whoever sets one in extraEnv wins. */}}
{{- define "entente.env" -}}
SPIFFE_ENDPOINT_SOCKET: {{ printf "unix:///spiffe-workload-api/%s" .Values.spire.workloadApi.socket | quote }}
{{- if .Values.spire.server.hostPath }}
ENTENTE_SPIRE_SERVER: {{ printf "unix:///spire-server/%s" .Values.spire.server.socket | quote }}
{{- else }}
ENTENTE_SPIRE_SERVER: {{ join "," .Values.spire.server.addresses | quote }}
{{- end }}
ENTENTE_SPIRE_CLASS_NAME: {{ .Values.spire.className | quote }}
ENTENTE_ADMIN_HINT: {{ .Values.spire.register.adminHint | quote }}
ENTENTE_INSTANCE: {{ include "entente.instance" . | quote }}
ENTENTE_LISTEN: {{ include "entente.listen" (list . .Values.peer.port) }}
ENTENTE_ADMIN_LISTEN: {{ include "entente.listen" (list . .Values.admin.port) }}
ENTENTE_CONTROL: /run/entente/control.sock
ENTENTE_CLUSTER_DOMAIN: {{ .Values.clusterDomain | quote }}
ENTENTE_LOG: {{ .Values.log.level | quote }}
ENTENTE_LOG_JSON: {{ .Values.log.json | quote }}
{{- with .Values.peer.advertise }}
ENTENTE_ADVERTISE: {{ join "," . | quote }}
{{- end }}
{{- with .Values.bundleEndpoint.url }}
ENTENTE_BUNDLE_ENDPOINT_URL: {{ . | quote }}
{{- end }}
{{- with .Values.bundleEndpoint.profile }}
ENTENTE_BUNDLE_ENDPOINT_PROFILE: {{ . | quote }}
{{- end }}
{{- with .Values.bundleEndpoint.spiffeID }}
ENTENTE_BUNDLE_ENDPOINT_SPIFFE_ID: {{ . | quote }}
{{- end }}
{{- if .Values.dns.enabled }}
ENTENTE_DNS_LISTEN: {{ include "entente.listen" (list . .Values.dns.port) }}
ENTENTE_DNS_RATE: {{ .Values.dns.rate | int64 | toString | quote }}
{{- with .Values.dns.upstream }}
ENTENTE_DNS_UPSTREAM: {{ join "," . | quote }}
{{- end }}
{{- end }}
{{- if .Values.xds.enabled }}
ENTENTE_XDS_LISTEN: {{ include "entente.listen" (list . .Values.xds.port) }}
ENTENTE_XDS_ALL_BUNDLES: {{ .Values.xds.allBundles | quote }}
{{- end }}
{{- if .Values.view.enabled }}
ENTENTE_VIEW: "true"
{{- end }}
ENTENTE_ISTIO: {{ .Values.istio.enabled | quote }}
{{- if .Values.istio.enabled }}
ENTENTE_ISTIO_NAMESPACE: {{ .Values.istio.namespace | quote }}
ENTENTE_ISTIO_REVISION: {{ .Values.istio.revision | quote }}
ENTENTE_EASTWEST_GATEWAY: {{ .Values.istio.eastWestGateway | quote }}
ENTENTE_INGRESS_GATEWAY: {{ .Values.istio.ingressGateway | quote }}
ENTENTE_GATEWAY_NODE_PORTS: {{ .Values.istio.gatewayNodePorts | quote }}
ENTENTE_FENCE: {{ .Values.istio.fence | quote }}
{{- end }}
{{- /* Releases of before have it in `istio`, also by `helm upgrade --reuse-values`. */}}
{{- $before := ternary .Values.istio.importAddressRange "" .Values.istio.enabled }}
{{- with default $before .Values.importAddressRange }}
ENTENTE_IMPORT_ADDRESS_RANGE: {{ . | quote }}
{{- end }}
{{- if .Values.webRoots.configMap }}
ENTENTE_WEB_ROOTS: {{ printf "/etc/entente/web-roots/%s" .Values.webRoots.key | quote }}
{{- end }}
{{- with .Values.tracing.endpoint }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ . | quote }}
{{- end }}
{{- range $name, $seconds := .Values.timing }}
ENTENTE_{{ $name | snakecase | upper }}_SECONDS: {{ $seconds | toString | quote }}
{{- end }}
{{- end }}
