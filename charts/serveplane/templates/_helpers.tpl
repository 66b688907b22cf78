{{- define "serveplane.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "serveplane.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "serveplane.labels" -}}
{{ include "serveplane.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: serveplane
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "serveplane.account" -}}
{{- default (include "serveplane.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "serveplane.tag" -}}
{{- default .Chart.AppVersion .Values.images.tag -}}
{{- end -}}

{{- /* An image of ours, by its name: the registry's, where there is one. */ -}}
{{- define "serveplane.image" -}}
{{- $registry := .root.Values.images.registry | trimSuffix "/" -}}
{{- if $registry }}{{ $registry }}/{{ end }}serveplane/{{ .name }}:{{ include "serveplane.tag" .root }}
{{- end -}}

{{- /* The namespaces that are looked at, as JSON; an empty list is all of them. */ -}}
{{- define "serveplane.namespaces" -}}
{{- if and (eq .Values.rbac.scope "namespace") (not .Values.rbac.namespaces) -}}
{{- list .Release.Namespace | toJson -}}
{{- else -}}
{{- .Values.rbac.namespaces | toJson -}}
{{- end -}}
{{- end -}}

{{- define "serveplane.webhook" -}}
{{- if and .Values.webhook.enabled (eq .Values.rbac.scope "cluster") }}true{{ end -}}
{{- end -}}

{{- define "serveplane.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "serveplane.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "serveplane.hook" -}}
admissionReviewVersions: [v1]
sideEffects: None
matchPolicy: Equivalent
failurePolicy: {{ .Values.webhook.failurePolicy }}
timeoutSeconds: {{ .Values.webhook.timeoutSeconds }}
{{- with include "serveplane.namespaces" . | fromJsonArray }}
namespaceSelector:
  matchExpressions:
    - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}
{{- end }}
{{- end -}}
